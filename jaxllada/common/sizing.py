"""Which shapes a sampler uses: few of them where shapes are compiled."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Which shapes a backend wants to see; without `few` whatever comes."""

    multiple: int = 1
    """Canvas lengths are multiples of this."""
    few: bool = False
    """Sizes that change during a run are few: batches are powers of two, lengths `multiple` times
    1, 2, 3, 4, 6, 8, 12 and so on."""

    def length(self, needed: int, *, is_growing: bool) -> int:
        """Columns of a canvas that holds `needed`."""
        count = -(-needed // self.multiple)
        if self.few and is_growing:
            power = 2 ** (count.bit_length() - 1)
            count = next(size for size in (power, power * 3 // 2, power * 2) if size >= count)
        return count * self.multiple

    def batch(self, needed: int, present: int) -> int:
        """Rows to put on the device, which holds `present` now."""
        return min(present, 2 ** (needed - 1).bit_length()) if self.few else needed
