"""The plan of a sampling run: how many tokens each call of a block commits.

Computed on the host from the options and the first canvas; every backend follows the same plan.
Source: `generate` of the LLaDA release (arXiv:2502.09992v3, Algorithm 5), October 2025.

Shape letters: B rows, L canvas length.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxllada.common.config.sampling import SamplingConfig


@dataclass(frozen=True)
class UnmaskingPlan:
    """How the steps of a run are shared by its blocks."""

    num_blocks: int
    block_length: int
    steps_per_block: int
    """Steps among which the masks of one block are divided."""

    @property
    def calls_per_block(self) -> int:
        """Most calls a block takes: with more steps than masks the last ones would be idle."""
        return min(self.steps_per_block, self.block_length)

    @property
    def total_calls(self) -> int:
        """Most calls a run takes; blocks that are complete sooner save some."""
        return self.num_blocks * self.calls_per_block


def unmasking_plan(config: SamplingConfig) -> UnmaskingPlan:
    """Shares the steps equally among the blocks; the config has checked that this works out."""
    return UnmaskingPlan(
        num_blocks=config.num_blocks,
        block_length=config.block_length,
        steps_per_block=config.steps_per_block,
    )


def transfer_counts(num_masks: int, steps: int) -> Int[np.ndarray, " steps"]:
    """Divides the masks of one block among its steps; earlier steps take the remainder.

    10 masks in 4 steps are committed as [3, 3, 2, 2].
    """
    base, extra = divmod(num_masks, steps)
    return base + (np.arange(steps) < extra).astype(np.int64)


def transfers(
    plan: UnmaskingPlan, tokens: Int[np.ndarray, "B L"], mask_id: int, prompt_length: int
) -> Int[np.ndarray, "B L"]:
    """Tokens that each call commits in each row, int32.

    Call j of block b stands at column b * block_length + j. Calls that would commit nothing are
    left out, so a row is done with a block at the first 0. The masks of a block are those of the
    first canvas: nothing before a block's turn touches it.
    """
    size, calls = plan.block_length, plan.calls_per_block
    counts = np.zeros(tokens.shape, np.int32)
    for block in range((tokens.shape[1] - prompt_length) // size):
        first = block * size
        where = slice(prompt_length + first, prompt_length + first + size)
        num_masks = (tokens[:, where] == mask_id).sum(axis=1)
        for row, count in enumerate(num_masks):
            of_row = transfer_counts(int(count), plan.steps_per_block)[:calls]
            counts[row, first : first + calls] = of_row
    return counts
