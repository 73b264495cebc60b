"""Which predictions of a step are kept: the best ones, lowest position first on ties.

Shape letters: B rows, S positions of the window.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.config.rule import Extra

TIE = 1e-5
"""Distance from the best that the `relative` threshold takes for a tie (dInfer)."""


def most_confident(
    score: Float[Tensor, "B S"],
    eligible: Bool[Tensor, "B S"],
    count: Int[Tensor, " B"],
    last: Bool[Tensor, "B S"] | None = None,
    extra: Extra = "",
    bound: float = 0.0,
    low_bound: float = 0.0,
) -> Bool[Tensor, "B S"]:
    """Marks the `count` eligible positions of each row with the highest score.

    Positions in `last` come after all others. Fewer than `count` eligible positions: all of them.
    `extra` is the adaptive rule by which more are marked, `bound` and `low_bound` are its numbers;
    it never marks positions in `last`.
    """
    order = torch.where(eligible, -score, math.inf).argsort(dim=1, stable=True)
    is_first = eligible
    if last is not None:
        # A second stable sort: an offset for `last` would round small confidences to equal values.
        group = torch.where(eligible, last.float(), 2.0).gather(1, order)
        order = order.gather(1, group.argsort(dim=1, stable=True))
        is_first = eligible & ~last
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    if extra == "hierarchy":
        is_sure = (score > bound) | ((score > low_bound) & best_of_runs(rank, eligible))
        return (eligible & (rank < count[:, None])) | (is_first & is_sure)
    if extra:
        best_first = torch.where(is_first, score, -math.inf).gather(1, order)
        count = torch.maximum(count, sure_count(best_first, extra, bound))
    return eligible & (rank < count[:, None])


def best_of_runs(rank: Int[Tensor, "B S"], eligible: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
    """Marks the position of lowest rank in every run of eligible neighbours."""
    gaps = (~eligible).int().cumsum(dim=1)
    is_mate = (gaps[:, :, None] == gaps[:, None, :]) & eligible[:, None, :]
    is_beaten = is_mate & (rank[:, None, :] < rank[:, :, None])
    return eligible & ~is_beaten.any(dim=2)


def sure_count(best_first: Float[Tensor, "B S"], extra: Extra, bound: float) -> Int[Tensor, " B"]:
    """How many of the sorted scores an adaptive rule keeps; minus infinity stands for none.

    Scores are probabilities, negative entropies for `entropy_bound`.
    """
    size = best_first.shape[1]
    rank = torch.arange(size, device=best_first.device)
    is_there = best_first > -math.inf
    # The best one passes always; the n best pass while (n + 1)(1 - q) <= factor.
    passes = is_there & ((rank == 0) | (best_first >= 1 - bound / (rank + 2).float()))
    match extra:
        case "threshold":
            kept = best_first >= bound
        case "relative":
            kept = best_first >= (best_first[:, :1] - TIE).clamp_max(bound)
        case "dllm":
            kept = passes
        case "factor" | "fast_dllm":
            kept = passes.int().cumprod(dim=1)
        case "entropy_bound":
            before = torch.where(is_there, -best_first, 0).cumsum(dim=1)
            kept = torch.nn.functional.pad(before[:, :-1], (1, 0)) <= bound
        case _:
            raise ValueError(extra)
    count = (is_there & (kept > 0)).int().sum(dim=1, dtype=torch.int32)
    if extra == "fast_dllm":
        total = is_there.int().sum(dim=1, dtype=torch.int32)
        count = torch.where((count == total - 1) & (total > 1), total, count)
    return count
