"""Resumable batches: the batch of a step is a function of the run seed and the step.

Shape letters: A micro-batches, B rows of this process in one micro-batch, L positions.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxllada.common import noise
from jaxllada.common.ahead import Ahead
from jaxllada.common.data.cutting import Batch, Cutter, check_free_of_mask, visited
from jaxllada.common.data.grouping import grouped_order, lengths_of
from jaxllada.common.data.next_token import shifted
from jaxllada.common.data.padding import PadPolicy, trained_padding
from jaxllada.common.data.rows import Row, as_rows
from jaxllada.common.data.stream import StreamSource
from jaxllada.common.errors import UserError

__all__ = [
    "Batch",
    "BatchSource",
    "Cutter",
    "StreamSource",
    "evaluation_batches",
    "prefetch",
    "source_of",
]


@dataclasses.dataclass(eq=False, kw_only=True)
class BatchSource(Cutter):
    """Batches over rows of random access, shuffled anew in every epoch.

    Example k of the run is row order(seed, k // n)[k % n] of n rows, so a batch may hold the end
    of one epoch and the start of the next, and no row is left out or seen twice in an epoch.
    `rows` is anything `as_rows` accepts. With `group_by_length` the order is that of
    `grouping.py`: still every row once, but rows of similar length in one batch.
    """

    rows: Any = dataclasses.field(kw_only=False)
    shuffle: bool = True
    group_by_length: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows = as_rows(self.rows)
        if len(self.rows) == 0:
            raise UserError("the training data has no rows")
        if (self.rows.row_length or 0) > self.max_length:
            raise UserError(
                f"max_length={self.max_length}: the prepared rows have {self.rows.row_length} "
                "tokens; prepare the data again with this length"
            )
        self._policy = self.policy_for(self.rows.pad_policy)
        self._grouped: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._lengths = lengths_of(self.rows) if self.group_by_length else None

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps of one pass over the rows, with its fraction."""
        return len(self.rows) / self.global_batch

    def row_number(self, k: int) -> int:
        """Returns which row example k of the run is."""
        epoch, place = divmod(k, len(self.rows))
        if not self.shuffle:
            return place
        return int(self._order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        if self._lengths is None:
            return _order(self.seed, epoch, len(self.rows))
        if epoch != self._grouped[0]:
            order = grouped_order(self.seed, epoch, self._lengths, self.global_batch)
            self._grouped = (epoch, order)
        return self._grouped[1]

    def batch(self, step: int) -> Batch:
        """Builds the batch of optimiser step `step`, counted from 0."""
        first = step * self.global_batch

        @functools.cache
        def read(r: int) -> Row:
            return visited(self.rows[self.row_number(first + r)], self.seed, first + r)

        def length_of(r: int) -> int:
            if self.rows.row_length is None:
                return len(read(r).tokens)  # a dialogue's length depends on the turn drawn
            return self.rows.length(self.row_number(first + r))

        return self.cut(
            step,
            read,
            length_of,
            row_length=self.rows.row_length,
            pad_policy=self._policy,
            has_answers=self.rows.pad_policy == "eos_supervised",
        )


def source_of(
    rows: Any, *, shuffle: bool = True, shuffle_block: int = 1024, **settings: Any
) -> BatchSource | StreamSource:
    """Returns the batches of `load_rows(...)["train"]`: of a stream if it is one, else of rows.

    `settings` are those of `Cutter`. A stream is shuffled within blocks of `shuffle_block` rows.
    """
    if callable(rows):
        stream: Any = rows
        return StreamSource(stream, shuffle_block=shuffle_block if shuffle else 1, **settings)
    return BatchSource(rows, shuffle=shuffle, **settings)


def prefetch(
    source: BatchSource | StreamSource,
    start_step: int = 0,
    depth: int = 2,
    stop_step: int | None = None,
) -> Ahead[tuple[int, Batch]]:
    """Builds (step, batch) from `start_step` on, up to `depth` ahead, before `stop_step`.

    Batches are functions of their step, so closing it early loses nothing.
    """
    steps = itertools.count(start_step) if stop_step is None else range(start_step, stop_step)
    return Ahead(((step, source.batch(step)) for step in steps), depth)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return noise.permutation(seed, epoch, rows)


def evaluation_batches(
    rows: Any,
    *,
    seed: int,
    batch_size: int,
    mask_id: int | None,
    pad_id: int,
    max_length: int,
    start_id: int = 0,
    mc: int = 1,
    max_rows: int = 0,
    eps: float = 1e-3,
    shard_index: int = 0,
    shard_count: int = 1,
    pad_policy: PadPolicy = "ignore",
    pad_to_multiple: int = 64,
) -> Iterator[Batch]:
    """Yields batches of A = 1 with fixed noise: `mc` draws of every row, times stratified.

    The noise depends on the seed, the row and the draw alone, not on `batch_size` (rows per
    process) or the processes. With the default policy padding is neither counted nor visible, so
    the sum over all batches does not depend on how they are cut either. `max_rows` above 0 takes
    that many rows, evenly spaced. The last batch is filled up with rows that count nothing. Of a
    dialogue the last answer is scored. `mask_id` is None for autoregressive models, whose rows
    begin behind `start_id` and know no noise.
    """
    rows = as_rows(rows)
    if len(rows) == 0:
        raise UserError("the evaluation data has no rows")
    total = min(max_rows, len(rows)) if max_rows else len(rows)
    chosen = np.arange(total) * len(rows) // total
    whole, padding = batch_size * shard_count, trained_padding(pad_policy)
    for first in range(0, total * mc, whole):
        numbers = range(first, min(first + whole, total * mc))
        # The longest row of the global batch decides the width on every process.
        lengths = [rows.length(int(chosen[n // mc])) for n in numbers]
        if max(lengths) > max_length:
            raise UserError(f"max_length={max_length}: a row has {max(lengths)} tokens")
        rounded = -(-max(lengths) // pad_to_multiple) * pad_to_multiple
        width = rows.row_length or min(rounded, max_length)
        shape = (batch_size, width)
        tokens, maskable = np.full(shape, pad_id, np.int32), np.zeros(shape, bool)
        visible, rates = np.ones(shape, bool), np.ones(batch_size, np.float32)
        noisy, is_masked = tokens.copy(), maskable.copy()
        own = numbers[shard_index * batch_size : (shard_index + 1) * batch_size]
        for i, number in enumerate(own):
            place, draw = divmod(number, mc)
            row = rows[int(chosen[place])]
            row = row.turn(-1) if row.turns else row
            n = len(row.tokens)
            tokens[i, :n], maskable[i, :n] = row.tokens, row.maskable
            end = max(lengths) if padding is None else min(n + padding, max(lengths))
            maskable[i, n:end] = True
            visible[i, end:] = False
            if mask_id is None:
                noisy[i], is_masked[i], _, _ = shifted(tokens[i], maskable[i], start_id)
                continue
            rates[i] = noise.evaluation_mask_rate(seed, place, draw, rows=total, draws=mc, eps=eps)
            index = int(chosen[place]) * mc + draw
            noisy[i], is_masked[i] = noise.hide(
                tokens[i],
                maskable[i],
                rates[i],
                seed=seed,
                index=index,
                mask_id=mask_id,
                phase=noise.EVAL,
            )
        check_free_of_mask(tokens, mask_id)
        ends = [n if padding == 0 else max(lengths) for n in lengths]
        padded = padding not in (0, None) or min(ends) < width
        yield Batch(
            tokens[None],
            noisy[None],
            is_masked[None],
            rates[None],
            maskable[None],
            visible[None] if padded else None,
        )
