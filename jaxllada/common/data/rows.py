"""Rows: what a data set is to the batches, an indexable of token rows.

Shape letters: N rows, L positions, n tokens of one row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int, Int32

from jaxllada.common.data.padding import PadPolicy
from jaxllada.common.errors import UserError


class Row(NamedTuple):
    """One row before padding and noise.

    `maskable` is what the loss counts (all of a pre-training row, the answer of a prompt/answer
    row). `turns` lists the (start, end) of every answer of a dialogue of which each visit trains
    one: the tokens from start to end are the answer, those before are the prompt and those after
    are left out. Empty: the row is used as it is.
    """

    tokens: Int[np.ndarray, " n"]
    maskable: Bool[np.ndarray, " n"]
    turns: tuple[tuple[int, int], ...] = ()

    def turn(self, number: int) -> "Row":
        """Returns the row that ends with answer `number`."""
        start, end = self.turns[number]
        return Row(self.tokens[:end], np.arange(end) >= start)


class Rows(Protocol):
    """Random access to rows. `row_length` is set where every row is padded to the same length;
    `pad_policy` is how they are padded unless a run says otherwise: `ignore` for running text,
    `eos_supervised` for prompt/answer rows."""

    pad_policy: PadPolicy
    row_length: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def length(self, index: int) -> int: ...


class PackedRows:
    """Pre-training rows of one length, whole in memory or mapped from a file.

    `lengths` gives the tokens in use where a tail is shorter than its row; padding behind them is
    neither trained on nor visible.
    """

    pad_policy: PadPolicy = "ignore"

    def __init__(
        self, tokens: Int[np.ndarray, "N L"], lengths: Int[np.ndarray, " N"] | None = None
    ):
        self.tokens = tokens
        self.lengths = lengths
        self.row_length: int | None = int(tokens.shape[1])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Row:
        tokens = np.asarray(self.tokens[index], np.int32)[: self.length(index)]
        return Row(tokens, np.ones(len(tokens), bool))

    def length(self, index: int) -> int:
        return int(self.tokens.shape[1] if self.lengths is None else self.lengths[index])

    def token_counts(self, size: int) -> Int[np.ndarray, " size"]:
        """Counts every id below `size` over all rows, for the unigram baseline."""
        counts = np.zeros(size, np.int64)
        for start in range(0, len(self), 1024):
            block = np.asarray(self.tokens[start : start + 1024])
            if self.lengths is not None:
                used = np.asarray(self.lengths[start : start + 1024])[:, None]
                block = block[np.arange(block.shape[1]) < used]
            counts += np.bincount(block.ravel(), minlength=size)
        return counts


class RaggedRows:
    """Rows of different lengths held in memory, padded with EOS that is trained on by default."""

    row_length: int | None = None

    def __init__(self, rows: Sequence[Row], pad_policy: PadPolicy = "eos_supervised"):
        self.rows = list(rows)
        self.pad_policy: PadPolicy = pad_policy

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def length(self, index: int) -> int:
        return len(self.rows[index].tokens)


class JoinedRows:
    """Several sources one behind the other."""

    def __init__(self, parts: Sequence[Rows]):
        if any(part.pad_policy != parts[0].pad_policy for part in parts):
            raise UserError("dataset_args: running text and prompt/answer rows cannot be mixed")
        self.parts = list(parts)
        self.pad_policy: PadPolicy = parts[0].pad_policy
        lengths = {part.row_length for part in parts}
        self.row_length: int | None = lengths.pop() if len(lengths) == 1 else None
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Rows, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - int(self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Row:
        part, inner = self._find(index)
        return part[inner]

    def length(self, index: int) -> int:
        part, inner = self._find(index)
        return part.length(inner)


class JoinedText(JoinedRows):
    """Several sources of packed text; their tokens can be counted."""

    def __init__(self, parts: Sequence[PackedRows]):
        super().__init__(parts)
        self._texts = list(parts)

    def token_counts(self, size: int) -> Int[np.ndarray, " size"]:
        """Counts every id below `size` over all rows."""
        return np.sum([part.token_counts(size) for part in self._texts], axis=0)


class SomeRows:
    """Some rows of others, in the order of their numbers."""

    def __init__(self, rows: Rows, numbers: Int[np.ndarray, " N"]):
        self.rows, self.numbers = rows, numbers
        self.pad_policy: PadPolicy = rows.pad_policy
        self.row_length: int | None = rows.row_length

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        return self.rows[int(self.numbers[index])]

    def length(self, index: int) -> int:
        return self.rows.length(int(self.numbers[index]))


def as_rows(rows: Any) -> Rows:
    """Accepts rows, an [N, L] array, or a sequence of token lists (every position counts)."""
    if hasattr(rows, "pad_policy"):
        return rows
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        return PackedRows(rows)
    return RaggedRows([_as_row(row) for row in rows])


def _as_row(row: Any) -> Row:
    if isinstance(row, Row):
        return row
    tokens: Int32[np.ndarray, " n"] = np.asarray(row, np.int32)
    return Row(tokens, np.ones(len(tokens), bool))
