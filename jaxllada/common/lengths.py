"""How long an answer should be, read from where a model expects its end.

Before the first block an answer grows until the model is confident of an end (DAEDAL,
arXiv:2508.00819v1, section 3.2 and its initial length adjustment). Between blocks, the share of end
tokens among the predictions of all masks that are left tells whether there is too much or too
little room (rho-EOS, arXiv:2601.22527v1). Both papers count in tokens and decide at every step;
here lengths are whole blocks and decisions fall between blocks, so that shapes repeat.

Shape letters: B rows, N answer length.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from jaxllada.common.config.canvas_policy import AdaptiveCanvas, FixedCanvas
from jaxllada.common.config.sampling import SamplingConfig

INTERVAL = 0.1
"""Distance of the density from the wanted range for which the change doubles."""
LARGEST_CHANGE = 8
"""Blocks that an answer grows or shrinks at most in one decision."""


def end_confidence(
    is_end: Bool[np.ndarray, "B N"],
    confidence: Float[np.ndarray, "B N"],
    window: int,
) -> Float[np.ndarray, " B"]:
    """Mean confidence of the last `window` predicted ends; those that are missing count as 0.

    `is_end` marks masks where the end token is predicted. float64 in [0, 1].
    """
    from_behind = np.cumsum(is_end[:, ::-1], axis=1)[:, ::-1]
    counted = is_end & (from_behind <= window)
    return np.where(counted, confidence, 0).sum(axis=1, dtype=np.float64) / window


def end_density(
    is_end: Bool[np.ndarray, "B N"], is_open: Bool[np.ndarray, "B N"]
) -> Float[np.ndarray, " B"]:
    """Share of the masks where the end token is predicted; 0 for a row without masks (float64)."""
    return (is_end & is_open).sum(axis=1) / np.maximum(is_open.sum(axis=1), 1)


def change_in_blocks(density: float, low: float, high: float) -> int:
    """Blocks to add (> 0) or to take away (< 0): 1, 2, 4, 8 as the density leaves [low, high]."""
    gap = low - density if density < low else high - density if density > high else 0.0
    if not gap:
        return 0
    size = 2 ** max(0, math.ceil((abs(gap) + 1e-12) / INTERVAL) - 1)
    return int(math.copysign(min(size, LARGEST_CHANGE), gap))


def first_length(config: SamplingConfig) -> int:
    """Positions of an answer before the first model call."""
    match config.canvas_rule:
        case FixedCanvas():
            return config.gen_length
        case AdaptiveCanvas(start=start):
            blocks = -(-start // config.block_length)
            return min(blocks * config.block_length, config.gen_length)
    return config.block_length
