"""Which rows of the canvas a model call computes when the others are kept: for every backend.

A region lies around the active block; keys and values of all other rows are those of an earlier
call. Whole reads renew everything. Fast-dLLM (arXiv:2505.22618v3, section 3.2) for `prefix` and
`dual`, dInfer (arXiv:2510.08666v2, vicinity refresh) for `vicinity`.
"""

from dataclasses import dataclass
from typing import Any

from jaxllada.common.config.cache import (
    BlockCausalCache,
    Cache,
    DualCache,
    PrefixCache,
    VicinityCache,
)

MOST_SIZES = 6
"""Lengths of a region that are compiled for the suffix of a canvas."""


@dataclass(frozen=True)
class Regions:
    """The rule of one cache. Counters may be numbers or traced values; arithmetic only."""

    block_length: int
    before: int = 0
    """Rows before the active block that are renewed with it."""
    after: int | None = 0
    """Rows behind it; None: all of them."""
    refresh: int = 0
    """Calls of a block between two whole reads; 0 reads the whole canvas at its first call only."""
    warmup: int = 0
    """The first calls of a run that read the whole canvas, besides the very first."""
    is_exact: bool = False
    """Nothing goes stale: blocks see no later ones, so that a block's last tokens are read once
    more with its successor, and never again."""

    @classmethod
    def of(cls, cache: Cache, block_length: int) -> "Regions | None":
        """The regions of a cache; None if it does not work by regions."""
        match cache:
            case PrefixCache():
                return cls(block_length, after=None, refresh=cache.refresh)
            case DualCache():
                return cls(block_length, refresh=cache.refresh)
            case VicinityCache():
                looks = (cache.prefix_look, cache.after_look)
                return cls(block_length, *looks, refresh=cache.refresh, warmup=cache.warmup)
            case BlockCausalCache():
                return cls(block_length, refresh=cache.refresh, is_exact=True)
        return None

    def reads_whole(self, age: Any, number: Any, distance: Any) -> Any:
        """Whether a call reads the whole canvas.

        `age` calls came before, `number` of them in this block, which begins `distance` rows behind
        the block of the call before.
        """
        whole = age <= self.warmup
        if self.refresh:
            whole |= number % self.refresh == 0
        if self.is_exact:
            # Blocks that were passed over were read beside masks.
            return whole | (distance > self.block_length)
        return whole | (number == 0)

    def span(self, block_start: Any, number: Any, end: Any) -> tuple[Any, Any]:
        """First row of the region and the row behind its last; may reach over the canvas."""
        first = block_start - self.before
        if self.is_exact:
            first = block_start - self.block_length * (number == 0)
        last = end if self.after is None else block_start + self.block_length + self.after
        return first, last

    def sizes(self, length: int) -> tuple[int, ...]:
        """Lengths that regions of a canvas of `length` rows are rounded up to, ascending."""
        if self.after is None:
            pace = self.block_length * max(1, -(-length // (self.block_length * MOST_SIZES)))
            return (*range(pace, length, pace), length)
        size = self.before + self.block_length + self.after
        sizes = (size, 2 * size) if self.is_exact else (size,)
        return tuple(sorted({min(size, length) for size in sizes}))

    @property
    def is_filled(self) -> bool:
        """Whether every region is as long as its size says, so that all its rows are renewed."""
        return self.after == 0 and self.before == 0
