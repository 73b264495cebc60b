"""Batches of a source that is read once, front to back, and is never whole on disk."""

import dataclasses
from collections.abc import Callable, Iterator

from jaxllada.common import noise
from jaxllada.common.data.cutting import Batch, Cutter, visited
from jaxllada.common.data.padding import PadPolicy
from jaxllada.common.data.rows import Row
from jaxllada.common.errors import UserError

OpenRows = Callable[[int], Iterator[Row]]


@dataclasses.dataclass(eq=False, kw_only=True)
class StreamSource(Cutter):
    """Batches of consecutive steps; the same interface as `BatchSource`, without its epochs.

    `open_rows(n)` iterates over the rows from row n on and starts over at the end of the source.
    The cursor is the example count, so any step can be asked for, but only the next one is free of
    skipping. With `shuffle_block` above 1 the rows of each block of that many are read together
    and dealt out in a random order that depends on (seed, block); the block is held in memory.
    Like `Rows`, `open_rows` says its `row_length` and `pad_policy`; the rows of a plain function
    are padded batch by batch, and the padding is not trained on. Every process reads the whole
    stream and keeps its own rows.
    """

    open_rows: OpenRows = dataclasses.field(kw_only=False)
    shuffle_block: int = 1024

    steps_per_epoch = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle_block < 1:
            raise UserError(f"shuffle_block={self.shuffle_block}: must be at least 1")
        self._row_length: int | None = getattr(self.open_rows, "row_length", None)
        self._default: PadPolicy = getattr(self.open_rows, "pad_policy", "ignore")
        self._policy = self.policy_for(self._default)
        self._position: int | None = None
        self._examples: Iterator[Row] = iter(())

    def batch(self, step: int) -> Batch:
        """Builds the batch of `step`; skips to it when it is not the one after the last."""
        first = step * self.global_batch
        if first != self._position:
            self._examples = self._from(first)
        # After an error the position is unknown and the next call starts anew.
        self._position = None
        rows = [
            visited(next(self._examples), self.seed, first + r) for r in range(self.global_batch)
        ]
        self._position = first + self.global_batch
        return self.cut(
            step,
            lambda r: rows[r],
            lambda r: len(rows[r].tokens),
            row_length=self._row_length,
            pad_policy=self._policy,
            has_answers=self._default == "eos_supervised",
        )

    def _from(self, k: int) -> Iterator[Row]:
        """Iterates over the examples from number k on."""
        block, skip = divmod(k, self.shuffle_block)
        rows = self.open_rows(block * self.shuffle_block)
        while True:
            held = [next(rows) for _ in range(self.shuffle_block)]
            order = noise.permutation(self.seed, block, self.shuffle_block)
            yield from (held[i] for i in order[skip:])
            block, skip = block + 1, 0
