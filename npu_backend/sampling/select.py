"""Which predictions of a step are kept: the most confident ones, lowest position first on ties.

Shape letters: B rows, S positions of the window.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def most_confident(
    confidence: Float[Tensor, "B S"],
    eligible: Bool[Tensor, "B S"],
    count: Int[Tensor, " B"],
    last: Bool[Tensor, "B S"] | None = None,
) -> Bool[Tensor, "B S"]:
    """Marks the `count` eligible positions of each row with the highest confidence.

    Positions in `last` come after all others. Fewer than `count` eligible positions: all of them.
    """
    order = torch.where(eligible, -confidence, math.inf).argsort(dim=1, stable=True)
    if last is not None:
        # A second stable sort: an offset for `last` would round small confidences to equal values.
        group = torch.where(eligible, last.int(), 2).gather(1, order)
        order = order.gather(1, group.argsort(dim=1, stable=True))
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    return eligible & (rank < count[:, None])
