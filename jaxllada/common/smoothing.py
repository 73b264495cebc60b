"""Numbers that change from call to call of a block: computed on the host, for every backend.

Tables in float32, indexed by the calls of the block that came before, so that backends compare and
multiply with the same numbers.
"""

import numpy as np
from jaxtyping import Float32

from jaxllada.common.config.selection import Selection
from jaxllada.common.config.smoothing import Smoothing, SoftSmoothing


def call_weights(rule: Smoothing, calls: int) -> Float32[np.ndarray, " C"]:
    """Share of the expected embedding that masks carry into the next call; empty without any."""
    if not isinstance(rule, SoftSmoothing):
        return np.zeros(0, np.float32)
    shares = rule.start + rule.growth * np.arange(calls)
    return np.minimum(shares, rule.weight).astype(np.float32)


def call_bounds(rule: Selection, calls: int) -> Float32[np.ndarray, " C"]:
    """What an adaptive selection compares with, where that falls from call to call; else empty.

    max(1 - decay * call, bound), the per-iteration threshold of dInfer (arXiv:2510.08666v2).
    """
    if not rule.decay:
        return np.zeros(0, np.float32)
    return np.maximum(1 - rule.decay * np.arange(calls), rule.bound).astype(np.float32)
