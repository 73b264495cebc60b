"""Which predictions of a step are kept: the best ones, lowest position first on ties.

Shape letters: B rows, S positions of the window.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.config.rule import Extra

TIE = 1e-5
"""Distance from the best that the `relative` threshold takes for a tie (dInfer)."""


def most_confident(
    score: Float[Array, "B S"],
    eligible: Bool[Array, "B S"],
    count: Int[Array, " B"],
    last: Bool[Array, "B S"] | None = None,
    extra: Extra = "",
    bound: Float[Array, ""] | float = 0.0,
    low_bound: Float[Array, ""] | float = 0.0,
) -> Bool[Array, "B S"]:
    """Marks the `count` eligible positions of each row with the highest score.

    Positions in `last` come after all others. Fewer than `count` eligible positions: all of them.
    `extra` is the adaptive rule by which more are marked, `bound` and `low_bound` are its numbers;
    it never marks positions in `last`.
    """
    group = jnp.where(eligible, 0, 2)
    if last is not None:
        group += last & eligible
    position = lax.broadcasted_iota(jnp.int32, score.shape, 1)
    # float32 keys: adding an offset for `last` would round small confidences to equal values.
    group, falling, order = lax.sort((group, -score, position), dimension=1, num_keys=3)
    _, rank = lax.sort((order, position), dimension=1, num_keys=1)
    if extra == "hierarchy":
        is_sure = (score > bound) | ((score > low_bound) & best_of_runs(rank, eligible))
        is_first = eligible if last is None else eligible & ~last
        return (eligible & (rank < count[:, None])) | (is_first & is_sure)
    if extra:
        best_first = jnp.where(group == 0, -falling, -jnp.inf)
        count = jnp.maximum(count, sure_count(best_first, extra, bound))
    return eligible & (rank < count[:, None])


def best_of_runs(rank: Int[Array, "B S"], eligible: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
    """Marks the position of lowest rank in every run of eligible neighbours."""
    gaps = jnp.cumsum(~eligible, axis=1)
    is_mate = (gaps[:, :, None] == gaps[:, None, :]) & eligible[:, None, :]
    is_beaten = is_mate & (rank[:, None, :] < rank[:, :, None])
    return eligible & ~jnp.any(is_beaten, axis=2)


def sure_count(
    best_first: Float[Array, "B S"], extra: Extra, bound: Float[Array, ""] | float
) -> Int[Array, " B"]:
    """How many of the sorted scores an adaptive rule keeps; minus infinity stands for none.

    Scores are probabilities, negative entropies for `entropy_bound`.
    """
    size = best_first.shape[1]
    rank = jnp.arange(size)
    is_there = best_first > -jnp.inf
    # The best one passes always; the n best pass while (n + 1)(1 - q) <= factor.
    passes = is_there & ((rank == 0) | (best_first >= 1 - bound / (rank + 2)))
    match extra:
        case "threshold":
            kept = best_first >= bound
        case "relative":
            kept = best_first >= jnp.minimum(bound, best_first[:, :1] - TIE)
        case "dllm":
            kept = passes
        case "factor" | "fast_dllm":
            kept = jnp.cumprod(passes, axis=1)
        case "entropy_bound":
            before = jnp.cumsum(jnp.where(is_there, -best_first, 0), axis=1)
            before = jnp.pad(before, ((0, 0), (1, 0)))[:, :-1]
            kept = before <= bound
        case _:
            raise ValueError(extra)
    count = jnp.sum(is_there & (kept > 0), axis=1)
    if extra == "fast_dllm":
        total = jnp.sum(is_there, axis=1)
        count = jnp.where((count == total - 1) & (total > 1), total, count)
    return count
