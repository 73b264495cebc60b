"""Reads a flat YAML mapping as text, with the line of every key.

Scalars stay the text the user wrote, so a file and a flag are converted by one rule: `3e-4` and
`1000_000` are numbers where a number is expected, `no` and `007` are text where text is.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxllada.common.errors import UserError


class Entry(NamedTuple):
    """The value of one key and where it was written."""

    value: Any
    where: str


_NULLS = ("", "~", "null", "Null", "NULL")


def _value(node: yaml.Node, source: str) -> Any:
    """Builds text, None, lists and dicts from a parsed node."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in _NULLS else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, source) for child in node.value]
    return {key: entry.value for key, entry in _mapping(node, source).items()}


def _mapping(node: yaml.Node, source: str) -> dict[str, Entry]:
    result: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        where = f"{source} line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{where}: expected 'key: value', the key is not a word")
        key = key_node.value
        if key in result:
            raise UserError(f"key '{key}' is written twice: {result[key].where} and {where}")
        result[key] = Entry(_value(value_node, source), where)
    return result


def parse(text: str, source: str) -> Any:
    """Returns the value of a YAML text, scalars as text. `source` names it in errors."""
    node = _compose(text, source)
    return None if node is None else _value(node, source)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{source}{line}: not valid YAML: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def read_mapping(path: str | Path) -> dict[str, Entry]:
    """Reads `key: value` lines. Raises UserError naming the file and the line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}{_neighbour(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}") from None
    node = _compose(text, str(path))
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
        raise UserError(f"{path}: expected lines 'key: value', got a {kind}")
    return _mapping(node, str(path))


def _neighbour(path: Path) -> str:
    """Names the files that are there, when there are few."""
    try:
        present = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return f" (the folder {path.parent} does not exist)"
    if not present or len(present) > 8:
        return ""
    return f" ({path.parent} has {', '.join(present)})"
