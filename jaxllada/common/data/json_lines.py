"""JSON files read line by line, for those that no table can be made of, and to name their lines.

A line that is not JSON, or not an object, is a row under the key `BROKEN` that says why.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.data.bad_rows import BROKEN
from jaxllada.common.errors import UserError

_LOOKED_AT = 200


def can_read(files: Sequence[Path]) -> bool:
    """Whether all files are JSON, plain or gzipped."""
    names = [file.name.lower().removesuffix(".gz") for file in files]
    return all(name.endswith((".json", ".jsonl")) for name in names)


class JsonRows:
    """The rows of some files, one behind the other; of random access by line."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self._items: dict[int, list[Any]] = {}
        self._lines: list[np.ndarray] = []  # (offset, number) of every line that is not empty
        for number, file in enumerate(self.files):
            if _holds_a_list(file):
                self._items[number] = _read_list(file)
                self._lines.append(np.zeros((len(self._items[number]), 2), np.int64))
            else:
                self._lines.append(_index(file))
        self._ends = np.cumsum([len(lines) for lines in self._lines])
        self.column_names = self._columns()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, start: int) -> Iterator[dict[str, Any]]:
        """Iterates from row `start` on; columns a row lacks are None."""
        while start < len(self):
            number = int(np.searchsorted(self._ends, start, side="right"))
            inner = start - int(self._ends[number - 1] if number else 0)
            for value in self._values(number, inner):
                yield self._row(value)
                start += 1

    def name(self, row: int) -> str:
        """Names a row: `file:line`, or the item of a list."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        inner = row - int(self._ends[number - 1] if number else 0)
        if number in self._items:
            return f"{self.files[number]}, item {inner + 1}"
        return f"{self.files[number]}:{self._lines[number][inner, 1]}"

    def _row(self, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return value if BROKEN in value else dict.fromkeys(self.column_names) | value
        return {BROKEN: f"holds {type(value).__name__}, expected an object"}

    def _values(self, number: int, start: int) -> Iterator[Any]:
        if number in self._items:
            yield from self._items[number][start:]
            return
        lines = self._lines[number][start:]
        if not len(lines):
            return
        with _open(self.files[number]) as file:
            file.seek(int(lines[0, 0]))
            left = len(lines)
            for line in file:
                if line.strip():
                    yield _parsed(line)
                    left -= 1
                if not left:
                    return

    def _columns(self) -> tuple[str, ...]:
        self.column_names: tuple[str, ...] = ()
        names: dict[str, None] = {}
        for row, _ in zip(self.rows(0), range(_LOOKED_AT), strict=False):
            names |= dict.fromkeys(name for name in row if name != BROKEN)
        return tuple(names)


def places(files: Sequence[Path]) -> Callable[[int], str]:
    """Returns a function that names a row of these files; they are read when it is called."""
    known: list[JsonRows] = []

    def name(row: int) -> str:
        if not known:
            known.append(JsonRows(files))
        return known[0].name(row)

    return name


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")


def _holds_a_list(file: Path) -> bool:
    with _open(file) as data:
        for line in data:
            if line.strip():
                return line.lstrip().startswith(b"[")
    return False


def _read_list(file: Path) -> list[Any]:
    with _open(file) as data:
        try:
            return json.load(data)
        except ValueError as error:
            raise UserError(f"dataset_args: {file} is not JSON: {error}") from None


def _index(file: Path) -> np.ndarray:
    found, offset = [], 0
    with _open(file) as data:
        for number, line in enumerate(data, 1):
            if line.strip():
                found.append((offset, number))
            offset += len(line)
    return np.array(found, np.int64).reshape(-1, 2)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return {BROKEN: f"is not JSON: {error}"}
