"""Which shapes a sampler uses: few of them where shapes are compiled."""

from dataclasses import dataclass

LEAST_SAVING = 64
"""Rows times model calls that a smaller batch has to save where it may be compiled first: about
what compiling a small model costs on a CPU."""


@dataclass(frozen=True)
class Sizes:
    """Which shapes a backend wants to see; without `few` whatever comes."""

    multiple: int = 1
    """Canvas lengths are multiples of this."""
    few: bool = False
    """Sizes that change during a run are few: rows, and lengths over `multiple`, are 1, 2, 3, 4, 6,
    8, 12 and so on."""
    keeps_rows: bool = False
    """Rows that are over stay on the device, which shows what leaving saves."""

    def length(self, needed: int, *, is_growing: bool) -> int:
        """Columns of a canvas that holds `needed`."""
        count = -(-needed // self.multiple)
        return (_size(count) if self.few and is_growing else count) * self.multiple

    def batch(self, needed: int, present: int, calls: int) -> int:
        """Rows to put on the device for so many calls at most; it holds `present` now."""
        if self.keeps_rows:
            return present
        if not self.few:
            return needed
        size = min(present, _size(needed))
        return size if (present - size) * calls >= LEAST_SAVING else present


def _size(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12 and so on that is not below `count`."""
    power = 2 ** (count.bit_length() - 1)
    return next(size for size in (power, power * 3 // 2, power * 2) if size >= count)
