"""The plan of a sampling run: how many tokens each call of a block commits.

Computed on the host from the options and the first canvas; every backend follows the same plan.
Source: `generate` of the LLaDA release (arXiv:2502.09992v3, Algorithm 5), October 2025.

Shape letters: B rows, L canvas length.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.selection import Dream, Selection


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


def dllm_counts(num_masks: int, steps: int) -> Int[np.ndarray, " steps"]:
    """The division of dllm for a linear schedule: of what is left, a share rounded half to even.

    10 masks in 4 steps are committed as [2, 3, 2, 3]. Times are float32, shares float64, as there.
    """
    times = np.float32(1) - (np.arange(steps, -1, -1) / steps).astype(np.float32)
    noise = 1 - times.astype(np.float64)
    return _rounds(num_masks, (1 - noise[1:] / noise[:-1]).tolist(), round)


def dream_counts(num_masks: int, steps: int, eps: float) -> Int[np.ndarray, " steps"]:
    """The division of Dream 7B: of what is left, 1 - s/t rounded down, in float32; the rest last.

    The times t > s are neighbours of `linspace(1, eps, steps + 1)`. (arXiv:2508.15487v1; the
    released code shares the mean of a batch, here every row has its own number.)
    """
    times = _dream_times(steps, eps)
    shares = np.float32(1) - times[1:] / times[:-1]
    return _rounds(num_masks, [*shares[:-1], np.float32(1)], lambda x: int(x), np.float32)


def _rounds(
    left: int, shares: Sequence[Any], whole: Callable[[Any], int], kind: Any = float
) -> Int[np.ndarray, " steps"]:
    counts = np.zeros(len(shares), np.int64)
    for step, share in enumerate(shares):
        counts[step] = min(left, whole(kind(left) * share))
        left -= counts[step]
    return counts


def _dream_times(steps: int, eps: float) -> Float32[np.ndarray, " steps+1"]:
    return np.linspace(1, eps, steps + 1).astype(np.float32)


def drawn_counts(
    draws: Float[np.ndarray, " masks"], rule: Selection, steps: int
) -> Int[np.ndarray, " calls"]:
    """Masks per call when every mask draws its own step by a uniform number; no zeros.

    A mask that is left at time t goes at the next time s with probability 1 - s/t, which is the
    binomial draw of dllm and of Dream's `origin`, made for all steps of a block at once.
    """
    times = np.arange(steps, -1, -1) / steps
    if isinstance(rule, Dream):
        times = _dream_times(steps, rule.eps).astype(np.float64)
    step = np.searchsorted(1 - times[1:-1], draws, side="right")
    return np.unique(step, return_counts=True)[1]


def transfers(
    config: SamplingConfig,
    tokens: Int[np.ndarray, "B L"],
    mask_id: int,
    prompt_length: int,
    draws: Float[np.ndarray, "B L"] | None = None,
) -> Int[np.ndarray, "B L"]:
    """Tokens that each call commits in each row, int32; adaptive rules may add to them.

    Call j of block b stands at column b * block_length + j. Calls that would commit nothing are
    left out, so a row is done with a block at the first 0. The masks of a block are those of this
    canvas: nothing before a block's turn touches it. `draws` are uniform numbers, one for each
    place of the answer, for stochastic rules.
    """
    size, steps = config.block_length, config.steps_per_block
    rule = config.selection_rule
    counts = np.zeros(tokens.shape, np.int32)
    for first in range(0, tokens.shape[1] - prompt_length, size):
        is_mask = tokens[:, prompt_length + first : prompt_length + first + size] == mask_id
        for row, open_ in enumerate(is_mask):
            if rule.is_stochastic:
                assert draws is not None
                own = draws[row, first : first + len(open_)][open_]
                of_row = drawn_counts(own, rule, steps)
            else:
                of_row = _division(rule, int(open_.sum()), steps)
            counts[row, first : first + len(of_row)] = of_row
    return counts


@functools.lru_cache(4096)
def _division(rule: Selection, num_masks: int, steps: int) -> Int[np.ndarray, " calls"]:
    """Masks per call by a fixed schedule, without zeros."""
    match rule.schedule:
        case "dllm":
            counts = dllm_counts(num_masks, steps)
        case "dream":
            assert isinstance(rule, Dream)
            counts = dream_counts(num_masks, steps, rule.eps)
        case _:
            counts = transfer_counts(num_masks, steps)
    return counts[counts > 0]
