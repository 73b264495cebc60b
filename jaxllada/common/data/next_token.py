"""Rows for next-token prediction: the noise-free counterpart of `common/noise.py`.

A row is shifted by one, so that position i sees the tokens before its own and predicts it; all
tokens are "hidden", at rate 1. The weighted sums of the masked-diffusion loss are then the exact
negative log-likelihood of the row (nothing is sampled), over the same tokens as the bound.
"""

import numpy as np
from jaxtyping import Bool, Int, Int32

from jaxllada.common.noise import Corruption


def shifted(
    tokens: Int[np.ndarray, " L"], maskable: Bool[np.ndarray, " L"], start_id: int
) -> Corruption:
    """Returns what each position sees: the token before it, and `start_id` before the first."""
    noisy: Int32[np.ndarray, " L"] = np.empty(len(tokens), np.int32)
    noisy[:1], noisy[1:] = start_id, tokens[:-1]
    return Corruption(noisy, maskable, np.float32(1), len(tokens))
