"""Evaluation protocols by name: what was published for a model and a task, and how it was measured.

`gsm8k@llada-base` is the recipe gsm8k of jaxllada/recipes/llada-base.yaml: tasks of lm_eval,
examples of the prompt, template, settings, metric and the published score. `gsm8k` alone is that of
the first family that has it, in the order of `FAMILIES`. Sampling keys are those of the preset of
its name.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.load import convert_entries
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.sampling_presets import preset_names, sampling_preset
from jaxllada.common.config.yaml_text import Entry, read_mapping
from jaxllada.common.errors import UserError, nearest

HOME = Path(__file__).parents[2] / "recipes"
FAMILIES = (
    "llada-instruct", "llada-base", "llada-1.5", "illada-base", "illada-instruct", "fast-dllm",
    "llada-strategies", "dllm-base", "dllm-instruct", "dllm-cache", "dream",
)  # fmt: skip

Harness = Literal["lm_eval", "opencompass", "internal", "none"]
"""What computed the published score. A score of another harness has other prompts and filters."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One protocol. Tasks either sample answers or score options by their likelihood."""

    name: str
    """TASK@FAMILY, or the stem of a file of one's own."""
    tasks: tuple[str, ...] = ()
    """Tasks or groups of lm_eval, or task files; all of them with the same settings."""
    num_fewshot: int | None = None
    """Examples in the prompt; null: as the task says."""
    chat: bool = False
    """Put prompts into the model's chat template."""
    fewshot_as_multiturn: bool = False
    """Make every example a turn of the conversation; needs `chat`."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Keys of `SamplingConfig`; empty where nothing is sampled."""
    likelihood: dict[str, Any] = field(default_factory=dict)
    """Keys of `LikelihoodConfig` and `add_bos`; empty where no likelihood is estimated."""
    metric: str = ""
    """The metric that was published as lm_eval's results name it, such as `acc_norm,none`."""
    published: float | None = None
    """The published score in percent."""
    harness: Harness = "none"
    """What computed `published`."""
    model: str = ""
    """The model that `published` is for, as on the Hugging Face Hub."""
    source: str = ""
    """Where settings and score are from."""
    note: str = ""
    """What is known to differ from the published protocol."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError(f"recipe={self.name}: tasks is empty: name tasks of lm_eval")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"recipe={self.name}: num_fewshot={self.num_fewshot} must be 0 or more")
        if self.fewshot_as_multiturn and not self.chat:
            raise UserError(
                f"recipe={self.name}: fewshot_as_multiturn=true with chat=false: turns need the"
                " chat template; set chat: true"
            )
        if bool(self.sampling) == bool(self.likelihood):
            raise UserError(
                f"recipe={self.name}: give sampling (keys, or a preset of that name) or likelihood,"
                " one of them"
            )
        if self.harness not in get_args(Harness):
            known = ", ".join(get_args(Harness))
            raise UserError(f"recipe={self.name}: harness={self.harness}: choose from {known}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodKeys(LikelihoodConfig):
    """The keys that `likelihood` may hold: an estimate, and how its prompts begin."""

    add_bos: bool = False
    """Begin every prompt with the beginning-of-sequence token."""


class _Family(NamedTuple):
    """One file: what its recipes share, the recipes, and why some published rows have none."""

    shared: dict[str, Entry]
    recipes: dict[str, dict[str, Any]]
    left_out: dict[str, str]


def recipe(name: str) -> Recipe:
    """Returns the recipe TASK, TASK@FAMILY or FILE.yaml.

    A file holds keys of `Recipe`; its `sampling` may be the name of a preset. Raises `UserError`
    for an unknown name, with the nearest one, for a published row that cannot be repeated, with
    the reason, and for a file with an unknown key or a wrong value.
    """
    if name.endswith((".yaml", ".yml")):
        return _build(Path(name).stem, read_mapping(name))
    full = recipe_names().get(name)
    if full is None:
        raise _unknown(name)
    task, family = full.split("@")
    where = f"{HOME / family}.yaml"
    entries = {key: Entry(value, where) for key, value in _family(family).recipes[task].items()}
    return _build(full, _family(family).shared | entries)


def recipes_of(text: str) -> list[Recipe]:
    """The recipes of a comma list of names, families (all of theirs) and files, each once."""
    names: dict[str, None] = {}
    for item in (part.strip() for part in text.split(",")):
        if not item:
            raise UserError(f"recipe={text}: empty name in the list")
        if item in FAMILIES:
            names |= {f"{task}@{item}": None for task in _family(item).recipes}
        else:
            names[recipe_names().get(item, item)] = None
    return [recipe(name) for name in names]


def recipe_names() -> dict[str, str]:
    """All names, and for each the full one that it stands for."""
    full = [f"{task}@{family}" for family in FAMILIES for task in _family(family).recipes]
    names: dict[str, str] = {}
    for name in full:
        names.setdefault(name.partition("@")[0], name)
    return names | {name: name for name in full}


def left_out() -> dict[str, str]:
    """Published rows without a recipe, TASK@FAMILY, and why."""
    return {
        f"{task}@{family}": reason
        for family in FAMILIES
        for task, reason in _family(family).left_out.items()
    }


def _unknown(name: str) -> UserError:
    reason = left_out().get(name)
    if reason:
        return UserError(f"recipe={name} is not offered: {reason}")
    known = recipe_names()
    given = name.partition("@")[0]
    same = [one for one in known if one.startswith(f"{given}@")]
    hint = f": choose from {', '.join(same)}" if same else nearest(name, [*known, *FAMILIES])
    return UserError(
        f"recipe={name} is unknown{hint}; the verb recipes lists all, a family stands for all of"
        " its recipes, NAME.yaml is a file"
    )


def _build(name: str, entries: dict[str, Entry]) -> Recipe:
    """Converts what a file says to a checked recipe."""
    entries = dict(entries)
    sampling, likelihood = entries.pop("sampling", None), entries.pop("likelihood", None)
    if "name" in entries:
        raise UserError(f"unknown key 'name' in {entries['name'].where}: the file names the recipe")
    values = convert_entries(Recipe, entries)
    if sampling is None and likelihood is None and name in preset_names():
        sampling = Entry(name, "")
    if sampling is not None:
        values["sampling"] = _sampling(sampling)
    if likelihood is not None:
        values["likelihood"] = _keys(LikelihoodKeys, "likelihood", likelihood)
        LikelihoodKeys(**values["likelihood"])
    return Recipe(name=name, **values)


def _sampling(entry: Entry) -> dict[str, Any]:
    """A preset by name, or keys; keys with `preset` among them change that preset."""
    if isinstance(entry.value, str):
        return sampling_preset(entry.value)
    given = dict(entry.value) if isinstance(entry.value, dict) else entry.value
    start = given.pop("preset", None) if isinstance(given, dict) else None
    values = sampling_preset(start) if start else {}
    return values | _keys(SamplingConfig, "sampling", Entry(given, entry.where))


def _keys(cls: type, name: str, entry: Entry) -> dict[str, Any]:
    if not isinstance(entry.value, dict):
        raise UserError(f"{name}={entry.value} in {entry.where}: expected keys and values")
    return convert_entries(cls, {k: Entry(v, entry.where) for k, v in entry.value.items()})


@functools.cache
def _family(name: str) -> _Family:
    sections = read_mapping(HOME / f"{name}.yaml")
    where = f"{HOME / name}.yaml"
    shared = sections["shared"].value if "shared" in sections else {}
    rows = sections["recipes"].value
    missing = sections["left_out"].value if "left_out" in sections else {}
    return _Family({key: Entry(value, where) for key, value in shared.items()}, rows, missing)


def recipe_table() -> str:
    """All recipes, a line each below their family, and the published rows that have none."""
    short = {full: name for name, full in recipe_names().items() if "@" not in name}
    blocks = []
    for family in FAMILIES:
        rows = [recipe(f"{task}@{family}") for task in _family(family).recipes]
        lines = [f"{family}: {rows[0].model or 'any model'} ({rows[0].source})"]
        for row in rows:
            alone = f" ({short[row.name]})" if row.name in short else ""
            lines.append(f"  {row.name + alone:<36} {describe(row)}")
        lines += [f"  not {task}: {why}" for task, why in _family(family).left_out.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def describe(row: Recipe) -> str:
    """One line: the score and its metric, the prompt, the settings."""
    score = "no score" if row.published is None else f"{row.published:.1f} {row.metric}"
    if row.harness not in ("lm_eval", "none") and row.published is not None:
        score += f" by {row.harness}"
    shots = (
        "examples as the task has them" if row.num_fewshot is None else f"{row.num_fewshot}-shot"
    )
    prompt = f"{', '.join(row.tasks)}, {shots}" + ", chat" * row.chat
    prompt += ", a turn each" * (row.fewshot_as_multiturn and row.num_fewshot != 0)
    keys = (row.sampling or row.likelihood).items()
    settings = ", ".join(f"{k}={str(v).lower() if v is True else v}" for k, v in keys)
    return f"{score}; {prompt}; {settings}"
