"""Lists the published sampling settings, or shows one as a file to start from.

jaxllada presets
jaxllada presets gsm8k@llada-1.5 > mine.yaml
jaxllada sample MODEL --chat --prompt "1 + 1 = ?" --preset mine.yaml --gen_length 128
"""

from dataclasses import dataclass, field

from jaxllada.common.config.sampling_presets import preset_table, sampling_preset


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = field(default="", metadata={"positional": True})
    """A preset to write as YAML; empty: list all."""


def run(config: Config) -> int:
    """Prints the table, or the keys of one preset."""
    if not config.name:
        print(preset_table())
        return 0
    import yaml

    print(yaml.safe_dump(sampling_preset(config.name), sort_keys=False), end="")
    return 0
