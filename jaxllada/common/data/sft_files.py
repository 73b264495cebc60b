"""Prompt/answer rows as flat arrays, written to files and mapped from them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxllada.common.data.cache import ArrayWriter
from jaxllada.common.data.padding import PadPolicy
from jaxllada.common.data.rows import Row
from jaxllada.common.errors import UserError

_ARRAYS = {
    "tokens": (np.int32, None),
    "maskable": (np.bool_, None),
    "ends": (np.int64, None),
    "turns": (np.int32, 2),
    "turn_ends": (np.int64, None),
}
"""Flat arrays of rows: `ends` and `turn_ends` are where each row's tokens and turns end."""


def as_arrays(rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """Returns rows as flat arrays."""
    held = list(rows)
    turns = [np.array(row.turns, np.int32).reshape(-1, 2) for row in held]
    return {
        "tokens": np.concatenate([np.zeros(0, np.int32), *(row.tokens for row in held)]),
        "maskable": np.concatenate([np.zeros(0, bool), *(row.maskable for row in held)]),
        "ends": np.cumsum([len(row.tokens) for row in held], dtype=np.int64),
        "turns": np.concatenate([np.zeros((0, 2), np.int32), *turns]),
        "turn_ends": np.cumsum([len(spans) for spans in turns], dtype=np.int64),
    }


def write_rows(pieces: Iterable[dict[str, np.ndarray]], folder: Path) -> dict[str, int]:
    """Writes pieces of `as_arrays` one behind the other.

    Returns facts: rows, tokens, supervised (tokens that are counted) and answers.
    """
    writers = {
        name: ArrayWriter(folder / f"{name}.npy", dtype, width)
        for name, (dtype, width) in _ARRAYS.items()
    }
    supervised = 0
    for piece in pieces:
        offsets = {"ends": writers["tokens"].count, "turn_ends": writers["turns"].count}
        for name, writer in writers.items():
            writer.append(piece[name] + offsets[name] if name in offsets else piece[name])
        supervised += int(piece["maskable"].sum())
    for writer in writers.values():
        writer.close()
    count = writers["ends"].count
    return {
        "rows": count,
        "tokens": writers["tokens"].count,
        "supervised": supervised,
        "answers": max(count, writers["turns"].count),
    }


class SftRows:
    """Prompt/answer rows mapped from the files that `write_rows` wrote."""

    pad_policy: PadPolicy = "eos_supervised"

    def __init__(self, folder: Path):
        self.row_length: int | None = None
        self.ends = np.load(folder / "ends.npy")
        self.turn_ends = np.load(folder / "turn_ends.npy")
        self.turns = np.load(folder / "turns.npy")
        if not len(self.ends):  # and an empty file could not be mapped
            raise UserError(f"{folder}: no rows")
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.maskable = np.load(folder / "maskable.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.ends)

    def _span(self, ends: np.ndarray, index: int) -> slice:
        return slice(int(ends[index - 1]) if index else 0, int(ends[index]))

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        place = self._span(self.ends, index)
        turns = self.turns[self._span(self.turn_ends, index)]
        return Row(
            np.asarray(self.tokens[place]),
            np.asarray(self.maskable[place]),
            tuple((int(start), int(end)) for start, end in turns),
        )

    def length(self, index: int) -> int:
        place = self._span(self.ends, index)
        return place.stop - place.start
