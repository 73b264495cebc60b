"""Sampling settings by name: those that were published per task, and files of one's own.

`gsm8k@llada-1.5` is the task gsm8k of jaxllada/presets/llada-1.5.yaml; `gsm8k` alone that of the
first family that has it, in the order of `FAMILIES`. A file of one's own holds keys of
`SamplingConfig`, one per line; `tune` writes such files.
"""

import functools
from pathlib import Path
from typing import Any

from jaxllada.common.config.load import convert_entries
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.yaml_text import Entry, read_mapping
from jaxllada.common.errors import UserError, nearest

HOME = Path(__file__).parents[2] / "presets"
FAMILIES = (
    "llada-instruct", "llada-base", "llada-1.5", "illada-base", "illada-instruct", "fast-dllm",
    "dllm-cache", "dinfer", "dream",
)  # fmt: skip


def sampling_preset(name: str) -> dict[str, Any]:
    """Returns keys of `SamplingConfig` and their values.

    `name` is TASK, TASK@FAMILY or a YAML file. Raises `UserError` for an unknown name, with the
    nearest one, and for a file with an unknown key or a wrong value.
    """
    if name.endswith((".yaml", ".yml")):
        return convert_entries(SamplingConfig, read_mapping(name))
    known = preset_names()
    found = known.get(name)
    if found is None:
        given = name.partition("@")[0]
        same = [one for one in known if "@" in one and one.startswith(f"{given}@")]
        hint = f": choose from {', '.join(same)}" if same else nearest(name, known)
        raise UserError(
            f"preset={name} is unknown{hint}; the verb presets lists all, NAME.yaml is a file"
        )
    task, family = found.split("@")
    where = f"{HOME / family}.yaml"
    entries = {key: Entry(value, where) for key, value in _family(family)[task].items()}
    return convert_entries(SamplingConfig, entries)


def preset_names() -> dict[str, str]:
    """All names, and for each the full one that it stands for."""
    full = [f"{task}@{family}" for family in FAMILIES for task in _family(family)]
    names: dict[str, str] = {}
    for name in full:
        names.setdefault(name.partition("@")[0], name)
    return names | {name: name for name in full}


def preset_table() -> str:
    """All presets with their settings, one per line."""
    short = {full: name for name, full in preset_names().items() if "@" not in name}
    lines = []
    for family in FAMILIES:
        for task in _family(family):
            full = f"{task}@{family}"
            settings = ", ".join(f"{k}={_shown(v)}" for k, v in sampling_preset(full).items())
            name = f"{full} ({short[full]})" if full in short else full
            lines.append(f"{name:<44} {settings}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def _family(name: str) -> dict[str, dict[str, Any]]:
    return {task: entry.value for task, entry in read_mapping(HOME / f"{name}.yaml").items()}
