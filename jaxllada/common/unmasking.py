"""The plan of a sampling run: which block a step works on and how many tokens it commits.

Computed on the host from the options alone; every backend follows the same plan.
Source: `generate` of the LLaDA release (arXiv:2502.09992v3, Algorithm 5), October 2025.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxllada.common.config.sampling import SamplingConfig


@dataclass(frozen=True)
class UnmaskingPlan:
    """Steps are counted through the whole answer; step i works on block i // calls_per_block."""

    num_blocks: int
    block_length: int
    steps_per_block: int
    """Steps among which the masks of one block are divided."""

    @property
    def calls_per_block(self) -> int:
        """Steps that commit something: with more steps than masks the last ones would be idle."""
        return min(self.steps_per_block, self.block_length)

    @property
    def total_calls(self) -> int:
        return self.num_blocks * self.calls_per_block


def unmasking_plan(config: SamplingConfig) -> UnmaskingPlan:
    """Shares the steps equally among the blocks; the config has checked that this works out."""
    return UnmaskingPlan(
        num_blocks=config.num_blocks,
        block_length=config.block_length,
        steps_per_block=config.steps // config.num_blocks,
    )


def transfer_counts(num_masks: int, steps: int) -> Int[np.ndarray, " steps"]:
    """Divides the masks of one block among its steps; earlier steps take the remainder.

    10 masks in 4 steps are committed as [3, 3, 2, 2].
    """
    base, extra = divmod(num_masks, steps)
    return base + (np.arange(steps) < extra).astype(np.int64)
