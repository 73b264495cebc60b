"""Training noise as data: which tokens of which example are hidden (LLaDA, arXiv:2502.09992v3).

Every draw is a function of (run seed, stream, example index). The index counts the examples of a
run over all steps, epochs and processes, so noise survives a restart, another number of devices
and another cut of the batch, and is the same for every backend. The generator is Philox with the
key (seed, stream) and the index in the top word of its counter: nothing is seeded through a hash,
streams of different examples never meet, and the first n draws do not depend on how many follow.

Shape letters: L positions of one row.
"""

import functools
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, UInt64

from jaxllada.common.errors import UserError, nearest

TimeSampling = Literal["iid", "antithetic", "stratified"]
LengthMode = Literal["sequence", "batch"]

# One phase has 256 streams. These numbers are part of the definition of the noise: add, never edit.
TRAIN = 0
EVAL = 1
LIKELIHOOD = 2
SAMPLE = 3
_TIME, _MASK, _LENGTH, _ORDER, _TURN = range(5)


class Corruption(NamedTuple):
    """One row as the model sees it, and what the loss needs to know about it."""

    noisy: Int32[np.ndarray, " L"]
    is_masked: Bool[np.ndarray, " L"]
    mask_rate: np.float32
    length: int


def raw_draws(seed: int, stream: int, index: int, count: int) -> UInt64[np.ndarray, " count"]:
    """Returns `count` random 64-bit words of one example; `seed` and `index` are below 2**64.

    Raw words are what NumPy promises to keep between versions; its distributions are not.
    """
    if not 0 <= seed < 2**64:
        raise UserError(f"seed={seed}: must be between 0 and 2**64 - 1")
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def uniforms(seed: int, stream: int, index: int, count: int) -> Float64[np.ndarray, " count"]:
    """Returns `count` draws from U[0, 1), each the top 53 bits of a raw word."""
    return (raw_draws(seed, stream, index, count) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, index: int, n: int, *, phase: int = TRAIN) -> Int[np.ndarray, " n"]:
    """Returns a random order of range(n): shuffling number `index` (an epoch) of this seed."""
    return np.argsort(raw_draws(seed, phase * 256 + _ORDER, index, n), kind="stable")


def time(
    seed: int,
    index: int,
    *,
    sampling: TimeSampling = "iid",
    batch_size: int = 1,
    phase: int = TRAIN,
) -> float:
    """Draws the time t of one example; its marginal distribution is U[0, 1) for every `sampling`.

    `iid` draws each on its own. The other two spread the `batch_size` consecutive examples of one
    optimiser batch so that each interval [i/n, (i+1)/n) holds exactly one: `antithetic` places a
    draw of its own in every interval (MDLM, arXiv:2406.07524), with the intervals dealt out from a
    random start, since otherwise the first row of every batch would always be nearly clean;
    `stratified` shifts one draw of the batch by i/n (MD4, arXiv:2406.04329).
    """
    if sampling not in get_args(TimeSampling):
        raise UserError(
            f"time_sampling={sampling}: use {', '.join(get_args(TimeSampling))}"
            + nearest(sampling, get_args(TimeSampling))
        )
    stream = phase * 256 + _TIME
    if sampling == "iid":
        return float(uniforms(seed, stream, index, 1)[0])
    group, slot = divmod(index, batch_size)
    draws = uniforms(seed, stream, group, 1 + batch_size if sampling == "antithetic" else 1)
    if sampling == "stratified":
        return float((draws[0] + slot / batch_size) % 1.0)
    interval = (slot + int(draws[0] * batch_size)) % batch_size
    # 1 - 2**-53 keeps the largest draw of the last interval below one after rounding.
    return float(min((interval + draws[1 + slot]) / batch_size, 1 - 2.0**-53))


def rate_of_time(t: float, eps: float = 1e-3) -> np.float32:
    """Returns p = (1 - eps) t + eps, the chance that one position is hidden (Algorithm 1).

    The floor `eps` bounds the weight 1/p of the loss; rounding to float32 may reach 1.
    """
    if not 0 < eps < 1:
        raise UserError(f"eps={eps}: must be above 0 and below 1")
    return np.float32((1 - eps) * t + eps)


def mask_rate(
    seed: int,
    index: int,
    *,
    sampling: TimeSampling = "iid",
    batch_size: int = 1,
    eps: float = 1e-3,
    phase: int = TRAIN,
) -> np.float32:
    """Draws the mask rate p of example `index`, see `time` and `rate_of_time`."""
    t = time(seed, index, sampling=sampling, batch_size=batch_size, phase=phase)
    return rate_of_time(t, eps)


def evaluation_mask_rate(
    seed: int, row: int, draw: int, *, rows: int, draws: int, eps: float = 1e-3
) -> np.float32:
    """Returns the mask rate of draw `draw` of one evaluation row, fixed for a seed.

    The times of all rows x draws are one stratified set. The draws of a row lie 1/draws apart, and
    which row gets which of the fine intervals is shuffled, so that t is unrelated to the order of
    the text.
    """
    slot = draw * rows + int(_evaluation_order(seed, rows)[row])
    return mask_rate(
        seed, slot, sampling="stratified", batch_size=rows * draws, eps=eps, phase=EVAL
    )


@functools.lru_cache(maxsize=4)
def _evaluation_order(seed: int, rows: int) -> np.ndarray:
    return permutation(seed, 0, rows, phase=EVAL)


def hide(
    tokens: Int[np.ndarray, " L"],
    maskable: Bool[np.ndarray, " L"],
    rate: np.float32,
    *,
    seed: int,
    index: int,
    mask_id: int,
    phase: int = TRAIN,
) -> tuple[Int32[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
    """Hides each maskable token with chance `rate`; returns the noisy row and what is hidden.

    Whether a position is hidden depends neither on the tokens nor on the positions after it.
    """
    draws = uniforms(seed, phase * 256 + _MASK, index, len(tokens))
    is_masked = maskable & (draws < float(rate))
    return np.where(is_masked, mask_id, tokens).astype(np.int32), is_masked


def corrupt(
    tokens: Int[np.ndarray, " L"],
    maskable: Bool[np.ndarray, " L"],
    *,
    seed: int,
    index: int,
    mask_id: int,
    sampling: TimeSampling = "iid",
    batch_size: int = 1,
    eps: float = 1e-3,
    length: int | None = None,
    phase: int = TRAIN,
) -> Corruption:
    """Draws the mask rate of one example and hides its tokens with it (Algorithms 1 and 2).

    `index` is the global example count and `batch_size` the examples of one optimiser batch.
    Positions from `length` on (see `random_length`) are neither hidden nor counted as visible.
    """
    length = len(tokens) if length is None else length
    rate = mask_rate(seed, index, sampling=sampling, batch_size=batch_size, eps=eps, phase=phase)
    maskable = maskable & (np.arange(len(tokens)) < length)
    noisy, is_masked = hide(
        tokens, maskable, rate, seed=seed, index=index, mask_id=mask_id, phase=phase
    )
    return Corruption(noisy, is_masked, rate, length)


def random_length(
    seed: int,
    index: int,
    length: int,
    *,
    ratio: float = 0.01,
    mode: LengthMode = "sequence",
    batch_size: int = 1,
) -> int:
    """Returns `length`, or with chance `ratio` a number from U{1..length} (section 2.2).

    `sequence` draws for each example. `batch` draws once for the `batch_size` examples of one
    optimiser batch, which is what the published guideline does with a whole batch.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"random_length_ratio={ratio}: must be between 0 and 1")
    if mode not in get_args(LengthMode):
        raise UserError(f"random_length_mode={mode}: use {', '.join(get_args(LengthMode))}")
    if ratio == 0:
        return length
    index = index if mode == "sequence" else index // batch_size
    chance, share = uniforms(seed, _LENGTH, index, 2)
    return 1 + int(share * length) if chance < ratio else length


def choose(seed: int, index: int, options: int) -> int:
    """Picks one of `options` for example `index`: the turn of a dialogue that is trained on."""
    return int(uniforms(seed, _TURN, index, 1)[0] * options)
