"""The grammar of `dataset_args`: which sources, how much of each split, options for the reader.

    sources := source { ("+" | "|") source }
    source  := path [ "[" key:value { "," key:value } "]" ]

A key with a whole number (underscores allowed) limits the split of that name; any other key is an
option of the reader, such as `name` or `lang` of a Hub data set. A path that itself holds `+` or
`|` is recognised by existing: at every place the longest piece that names something on disk wins.
"""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxllada.common.errors import UserError

_NUMBER = re.compile(r"-?\d+(_\d+)*")


class SourceSpec(NamedTuple):
    """One source: its path or name, the most rows to take per split, and options."""

    path: str
    limits: dict[str, int]
    options: dict[str, str]


def located(path: str) -> str:
    """Returns where a path is: below BASE_DATASETS_DIR if it is relative and exists there."""
    base = os.environ.get("BASE_DATASETS_DIR", "")
    if base and not os.path.isabs(path) and os.path.exists(os.path.join(base, path)):
        return os.path.join(base, path)
    return os.path.expanduser(path)


def parse_dataset_args(
    spec: str, exists: Callable[[str], bool] = lambda path: os.path.exists(located(path))
) -> list[SourceSpec]:
    """Reads a `dataset_args` text; raises a UserError that quotes the part that is wrong."""
    pieces = _split(spec)
    sources = []
    while pieces:
        # Odd places of the list are separators.
        count = next(
            (
                n
                for n in range(len(pieces), 1, -1)
                if n % 2 and exists(_path_of("".join(pieces[:n])))
            ),
            1,
        )
        sources.append(_source("".join(pieces[:count]).strip(), spec))
        pieces = pieces[count + 1 :]
    return sources


def _split(spec: str) -> list[str]:
    """Cuts at separators outside brackets, keeping them: [piece, separator, piece, ...]."""
    pieces, depth = [""], 0
    for letter in spec:
        depth += (letter == "[") - (letter == "]")
        if depth == 0 and letter in "+|":
            pieces += [letter, ""]
        else:
            pieces[-1] += letter
    return pieces


def _path_of(item: str) -> str:
    item = item.strip()
    return item[: item.rindex("[")].strip() if item.endswith("]") and "[" in item else item


def _source(item: str, spec: str) -> SourceSpec:
    where = f"dataset_args={spec!r}"
    path = _path_of(item)
    if not path:
        raise UserError(f"{where}: a source has no name; expected path[train:1000,test:100]+...")
    if ("[" in path or "]" in path) and not os.path.exists(located(path)):
        raise UserError(f"{where}: the brackets of {item!r} do not match")
    limits: dict[str, int] = {}
    options: dict[str, str] = {}
    inside = item[item.rindex("[") + 1 : -1] if path != item else ""
    for pair in inside.split(",") if inside.strip() else []:
        key, colon, value = (text.strip() for text in pair.partition(":"))
        if not (colon and key and value):
            raise UserError(f"{where}: {pair.strip()!r} should be key:value")
        if key in limits or key in options:
            raise UserError(f"{where}: {key} is given twice")
        if _NUMBER.fullmatch(value):
            limits[key] = int(value)
            if limits[key] < 0:
                raise UserError(f"{where}: {key}:{value} must not be negative")
        elif key in ("train", "test"):
            raise UserError(f"{where}: {key}:{value} should be a whole number of rows")
        else:
            options[key] = value
    return SourceSpec(path, limits, options)
