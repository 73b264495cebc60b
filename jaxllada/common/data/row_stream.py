"""Rows read while training, from sources that are never whole on disk; for `StreamSource`.

Called with a row number, a stream iterates over its rows from there on and starts over at its end.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllada.common.data.bad_rows import BadRows, OnBadRow
from jaxllada.common.data.padding import PadPolicy
from jaxllada.common.data.parts import Part
from jaxllada.common.data.pretrain import tokenised
from jaxllada.common.data.rows import PackedRows, Row
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

_MARK_EVERY = 256


class _Mark(NamedTuple):
    """A place between two documents: rows given so far, where to read on, tokens left over."""

    rows: int
    part: int
    document: int
    left: tuple[int, ...]


class PackedStream:
    """Running text packed on the fly; nothing is dropped, the tail joins the next pass.

    Starting at a row costs tokenising what lies before it, except that places passed earlier are
    remembered, in the file `index` also for later runs. `parts` are pairs of a part and its column.
    """

    pad_policy: PadPolicy = "ignore"

    def __init__(
        self,
        parts: Sequence[tuple[Part, str]],
        tokenizer: Tokenizer,
        *,
        max_length: int,
        insert_eos: bool,
        parallel: bool,
        index: Path | None = None,
        on_bad_row: OnBadRow = "error",
    ):
        self.bad = BadRows(on_bad_row, tells=True)
        self.parts, self.tokenizer, self.row_length = list(parts), tokenizer, max_length
        self.insert_eos, self.parallel = insert_eos, parallel
        self._index = index
        self._marks = [_Mark(0, 0, 0, ()), *_read_marks(index)]

    def __call__(self, start: int) -> Iterator[Row]:
        everything = np.ones(self.row_length, bool)
        for number, tokens in self._rows(start):
            if number >= start:
                yield Row(tokens, everything)

    def _rows(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        mark = max(mark for mark in self._marks if mark.rows <= start)
        number, first_part, first_document = mark.rows, mark.part, mark.document
        held = np.array(mark.left, np.int32)
        while True:
            tokens_of_pass = 0
            for p in range(first_part, len(self.parts)):
                for d, ids in enumerate(self._documents(p, first_document), first_document + 1):
                    tokens_of_pass += len(ids)
                    held = np.concatenate([held, ids])
                    cut = len(held) - len(held) % self.row_length
                    for tokens in held[:cut].reshape(-1, self.row_length):
                        yield number, tokens
                        number += 1
                    held = held[cut:]
                    if number >= self._marks[-1].rows + _MARK_EVERY:
                        self._remember(_Mark(number, p, d, tuple(map(int, held))))
                first_document = 0
            if not tokens_of_pass and (first_part, mark.document) == (0, 0):
                raise UserError(f"dataset_args: {self.parts[0][0].source} holds no text")
            first_part, mark = 0, self._marks[0]

    def _remember(self, mark: _Mark) -> None:
        self._marks.append(mark)
        if self._index is not None:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with self._index.open("a", encoding="utf-8") as file:
                file.write(json.dumps(mark) + "\n")

    def _documents(self, p: int, start: int) -> Iterator[np.ndarray]:
        part, column = self.parts[p]
        return tokenised(
            part,
            column,
            self.tokenizer,
            insert_eos=self.insert_eos,
            parallel=self.parallel,
            start=start,
            bad=self.bad,
        )

    def all_rows(self) -> PackedRows:
        """Reads everything once into memory; the short rest is padded."""
        ids = [ids for p in range(len(self.parts)) for ids in self._documents(p, 0)]
        joined = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        if not len(joined):
            raise UserError(f"dataset_args: {self.parts[0][0].source}, test holds no text")
        count = -(-len(joined) // self.row_length)
        tokens = np.full(count * self.row_length, self.tokenizer.pad_id, np.int32)
        tokens[: len(joined)] = joined
        lengths = np.full(count, self.row_length)
        lengths[-1] = len(joined) - (count - 1) * self.row_length
        return PackedRows(tokens.reshape(count, -1), lengths)


def _read_marks(index: Path | None) -> list[_Mark]:
    """Reads the places of earlier runs, as far as the file is whole and in order."""
    marks: list[_Mark] = []
    if index is None or not index.is_file():
        return marks
    for line in index.read_text(encoding="utf-8").splitlines():
        try:
            rows, part, document, left = json.loads(line)
            mark = _Mark(int(rows), int(part), int(document), tuple(left))
        except (ValueError, TypeError):  # the last line of a run that was killed
            continue
        # Two processes that share the file write the same lines.
        if mark.rows > (marks[-1].rows if marks else 0):
            marks.append(mark)
    return marks


class RowStream:
    """Prompt/answer rows in the order of their sources, cut to length already."""

    pad_policy: PadPolicy = "eos_supervised"
    row_length = None

    def __init__(
        self,
        open_rows: Callable[[], Iterator[Row]],
        *,
        max_length: int,
    ):
        self._open, self._max_length = open_rows, max_length

    def once(self) -> Iterator[Row]:
        """Iterates over the rows of one pass."""
        yield from self._open()

    def __call__(self, start: int) -> Iterator[Row]:
        return itertools.islice(self._forever(), start, None)

    def _forever(self) -> Iterator[Row]:
        while True:
            empty = True
            for row in self.once():
                empty = False
                yield row
            if empty:
                raise UserError(f"max_length={self._max_length}: no row of the stream fits")
