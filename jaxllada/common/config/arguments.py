"""Reads a command line: `CONFIG.yaml`, `--key value` and `key=value` in any order."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxllada.common.config.fields import Key, expected
from jaxllada.common.config.yaml_text import Entry
from jaxllada.common.errors import UserError, nearest

_BOOLEAN_WORDS = ("true", "false", "yes", "no")


class Arguments(NamedTuple):
    """What was written: the file, the keys that were given, and what is only asked for."""

    file: str | None
    flags: dict[str, Entry]
    asks: str | None  # "help" or "print_config"


def split_arguments(argv: Sequence[str], keys: dict[str, Key]) -> Arguments:
    """Sorts arguments into the file, the flags and a request for help."""
    if "--help" in argv or "-h" in argv:
        return Arguments(None, {}, "help")
    file, asks = None, None
    flags: dict[str, Entry] = {}
    plain: list[str] = []
    takes_plain = any(key.positional for key in keys.values())
    left = list(argv)
    while left:
        word = left.pop(0)
        assignment = re.match(r"(--)?([A-Za-z_][\w-]*)=(.*)", word, re.DOTALL)
        if word in ("--print_config", "--print-config"):
            asks = "print_config"
        elif assignment and (
            assignment[1]
            or not takes_plain
            or assignment[2] in keys
            or nearest(assignment[2], keys)
        ):
            _add(flags, _known(assignment[2], keys, word), assignment[3])
        elif word.startswith("-") and len(word) > 1:
            key = _known(word.lstrip("-"), keys, word)
            _add(flags, key, _take(left, key, keys, takes_plain))
        elif file is None and not plain and word.endswith((".yaml", ".yml")):
            file = word
        else:
            plain.append(word)
    if plain:
        _place(flags, plain, keys, file)
    return Arguments(file, flags, asks)


def _add(flags: dict[str, Entry], key: Key, value: Any) -> None:
    flags[key.name] = Entry(value, f"--{key.name}")


def _known(name: str, keys: dict[str, Key], word: str) -> Key:
    found = keys.get(name) or keys.get(name.replace("-", "_"))
    if found is None:
        hint = nearest(name.replace("-", "_"), keys) or " (--help lists every key)"
        raise UserError(f"unknown key '{name}' in argument '{word}'{hint}")
    return found


def _is_key(word: str, keys: dict[str, Key]) -> bool:
    """Whether a word starts the next key: `--x`, or `key=` with a known key."""
    name = word.split("=", 1)[0]
    if word.startswith("--"):
        return name[2:3].isalpha() and " " not in name
    return "=" in word and name in keys


def _take(left: list[str], key: Key, keys: dict[str, Key], takes_plain: bool) -> Any:
    """Takes the value of a flag off the arguments: one word, or several for a list."""
    has_value = bool(left) and not _is_key(left[0], keys)
    if key.is_flag:
        # `--json PATH` leaves PATH alone; `--json maybe` is a mistake where no PATH is expected.
        only_words = takes_plain and len(key.members) == 1
        if not has_value or (only_words and left[0].lower() not in _BOOLEAN_WORDS):
            return "true"
    if not has_value:
        raise UserError(f"--{key.name}: no value given, expected {expected(key.hint)}")
    words = [left.pop(0)]
    while key.is_sequence and left and not _is_key(left[0], keys):
        words.append(left.pop(0))
    return words if len(words) > 1 else words[0]


def _place(flags: dict[str, Entry], plain: list[str], keys: dict[str, Key], file: str | None):
    """Gives plain arguments to the positional keys."""
    wanted = [key for key in keys.values() if key.positional and key.name not in flags]
    for key in wanted:
        if key.is_sequence:
            flags[key.name] = Entry(list(plain), key.name)
            return
        flags[key.name] = Entry(plain.pop(0), key.name)
        if not plain:
            return
    if file is not None and plain[0].endswith((".yaml", ".yml")):
        raise UserError(f"two files given, {file} and {plain[0]}: expected one CONFIG.yaml")
    near = nearest(plain[0], keys)
    raise UserError(
        f"unexpected argument '{plain[0]}': expected CONFIG.yaml, --key value or key=value{near}"
    )
