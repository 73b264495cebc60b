"""Tokens that are too unlikely to be drawn: top-k and nucleus filters without sorting.

Both keep what lies at or above a cut, so the cut is searched for, by halving the float32 numbers
between the extremes: 32 passes over the logits, exact to the last bit.

Shape letters: N positions, V vocabulary rows.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.sampling.inputs import Inputs


def filtered(scores: Float[Tensor, "N V"], inputs: Inputs, policy: Policy) -> Float[Tensor, "N V"]:
    """Puts minus infinity where a token is not to be drawn.

    The nucleus holds a token if those more likely than it sum to at most `top_p`, so the first
    beyond the sum is in; both filters look at the distribution as it comes (Dream 7B's order).
    Equally likely tokens are kept or dropped together.
    """
    cut = scores.new_full((len(scores),), -math.inf)
    if policy.has_top_k:
        cut = _cut(scores, torch.ones_like(scores), float(inputs.top_k - 1))
    if policy.has_top_p:
        weight = scores.softmax(dim=1)
        cut = torch.maximum(cut, _cut(scores, weight, inputs.top_p))
    return scores.masked_fill(scores < cut[:, None], -math.inf)


def _cut(
    scores: Float[Tensor, "N V"], weight: Float[Tensor, "N V"], budget: float
) -> Float[Tensor, " N"]:
    """The lowest number such that the weight of all scores above it is within the budget."""
    # Nothing lies above the largest score, everything above minus infinity.
    high = _ordered(scores.amax(dim=1))
    low = _ordered(torch.full_like(scores[:, 0], -math.inf))
    for _ in range(32):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        above = scores > _float(middle)[:, None]
        fits = (weight * above).sum(dim=1) <= budget
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return _float(high)


def _ordered(x: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Integers in the order of float32 numbers."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(order: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    bits = torch.where(order < 0, order ^ 0x7FFFFFFF, order)
    return bits.view(torch.float32)
