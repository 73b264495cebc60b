"""Lists the published evaluation protocols, or shows one as a file to start from.

jaxllada recipes
jaxllada recipes gsm8k@llada-base > mine.yaml
"""

import dataclasses
from dataclasses import dataclass, field

from jaxllada.common.config.recipes import recipe, recipe_table


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = field(default="", metadata={"positional": True})
    """A recipe to write as YAML; empty: list all."""


def run(config: Config) -> int:
    """Prints the table, or the keys of one recipe."""
    if not config.name:
        print(recipe_table())
        return 0
    import yaml

    values = dataclasses.asdict(recipe(config.name))
    del values["name"]  # that of the file
    said = {key: value for key, value in values.items() if value not in (None, "", {}, ())}
    said["tasks"] = list(values["tasks"])
    for kind in ("sampling", "likelihood"):
        if kind in said:
            said[kind] = {k: list(v) if isinstance(v, tuple) else v for k, v in said[kind].items()}
    print(yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100), end="")
    return 0
