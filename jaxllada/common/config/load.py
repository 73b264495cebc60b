"""Turns a YAML file and flags into a frozen dataclass; the only importer of jsonargparse.

    jaxllada VERB [CONFIG.yaml] [--key value | --key=value | key=value ...]

The file is read first and flags win. Keys are the fields of the dataclass and nothing else; every
mistake is a UserError of one line that names the key, its value, where it was written and what
would be right. A field with `metadata={"positional": True}` also takes plain arguments.
"""

import functools
import inspect
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from jaxllada.common.config.arguments import split_arguments
from jaxllada.common.config.fields import Key, expected, keys_of
from jaxllada.common.config.yaml_text import Entry, parse, read_mapping
from jaxllada.common.errors import UserError, nearest
from jaxllada.common.manifest import write_atomically

T = TypeVar("T")


def load_config(
    cls: type[T], argv: Sequence[str], *, prog: str = "jaxllada", description: str | None = None
) -> T:
    """Builds `cls` from `[CONFIG.yaml] [--key value ...]`.

    `--help` and `--print_config` print and raise SystemExit(0). Raises UserError for an unknown
    key, a value of the wrong type, a missing or damaged file, and whatever `__post_init__` finds.
    """
    keys = keys_of(cls)
    arguments = split_arguments(argv, keys)
    if arguments.asks == "help":
        from jaxllada.common.config.help import help_text

        print(help_text(keys, prog=prog, description=description or inspect.getdoc(cls) or ""))
        raise SystemExit(0)
    entries = {}
    if arguments.file is not None:
        for name, entry in read_mapping(arguments.file).items():
            if name not in keys:
                raise UserError(f"unknown key '{name}' in {entry.where}{nearest(name, keys)}")
            entries[name] = entry
    entries |= arguments.flags
    values = {name: _convert(cls, keys[name], entry) for name, entry in entries.items()}
    config = _build(cls, keys, values)
    if arguments.asks == "print_config":
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def from_mapping(cls: type[T], values: dict[str, Any], *, where: str = "the mapping") -> T:
    """Builds `cls` from Python values under the same rules as from a file."""
    keys = keys_of(cls)
    for name in values:
        if name not in keys:
            raise UserError(f"unknown key '{name}' in {where}{nearest(name, keys)}")
    return _build(
        cls, keys, {n: _convert(cls, keys[n], Entry(v, where)) for n, v in values.items()}
    )


def convert_entries(cls: type, entries: dict[str, Entry]) -> dict[str, Any]:
    """Converts some of the keys of `cls`; unlike `from_mapping` it builds nothing."""
    keys = keys_of(cls)
    for name, entry in entries.items():
        if name not in keys:
            raise UserError(f"unknown key '{name}' in {entry.where}{nearest(name, keys)}")
    return {name: _convert(cls, keys[name], entry) for name, entry in entries.items()}


def load_file(cls: type[T], path: str | Path) -> T:
    """Builds `cls` from a YAML file alone."""
    return load_config(cls, [os.fspath(path)])


def to_yaml(config: Any) -> str:
    """Writes every key of a configuration as YAML that `load_config` reads back unchanged."""
    values = {name: _plain(getattr(config, name)) for name in keys_of(type(config))}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def save_config(config: Any, path: str | Path) -> None:
    """Writes `to_yaml(config)` atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_yaml(config).encode())


def _convert(cls: type, key: Key, entry: Entry) -> Any:
    """Converts what was written to the type of the key."""
    value = entry.value
    if value is None and type(None) not in key.members:
        raise UserError(f"{key.name} has no value in {entry.where}: expected {expected(key.hint)}")
    if isinstance(value, str) and key.is_sequence and str not in key.members:
        value = _as_list(value, key, entry.where)
    for candidate in _readings(value):
        ok, converted = _parse(cls, key.name, candidate)
        if ok:
            return converted
    shown = entry.value if isinstance(entry.value, str) else _shown(entry.value)
    place = "" if entry.where == f"--{key.name}" else f" in {entry.where}"
    hint = nearest(shown, _choices(key))
    raise UserError(f"{key.name}={shown}{place}: expected {expected(key.hint)}{hint}")


def _readings(value: Any) -> list[Any]:
    """The value as written, then `1e3` as the integer it is."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d_.]+[eE]\+?\d+", value):
        number = float(value)
        return [value, str(int(number))] if number.is_integer() else [value]
    return [value]


def _as_list(text: str, key: Key, where: str) -> Any:
    """Reads `a,b`, `[a, b]` or `null` as a list."""
    if text.strip() in ("", "null") and type(None) in key.members:
        return None
    if text.lstrip().startswith("["):
        return parse(text, where)
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _choices(key: Key) -> list[str]:
    return [str(a) for m in key.members if get_origin(m) is Literal for a in get_args(m)]


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().split("\n")[0]


@functools.cache
def _parser(cls: type) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    for key in keys_of(cls).values():
        parser.add_argument(f"--{key.name}", type=key.hint)
    return parser


def _parse(cls: type, name: str, value: Any) -> tuple[bool, Any]:
    import jsonargparse

    try:
        return True, getattr(_parser(cls).parse_object({name: value}, defaults=False), name)
    except (jsonargparse.ArgumentError, ValueError, TypeError):
        return False, None


def _build(cls: type[T], keys: dict[str, Key], values: dict[str, Any]) -> T:
    for key in keys.values():
        if key.is_required and key.name not in values:
            about = f" ({key.help})" if key.help else ""
            raise UserError(f"missing key '{key.name}': expected {expected(key.hint)}{about}")
    return cls(**values)


def _plain(value: Any) -> Any:
    """Turns tuples and paths into what YAML can say."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return os.fspath(value) if isinstance(value, Path) else value
