"""Random numbers of sampling: drawn on the host, so that a seed means the same on every device.

argmax(logits + T * noise) over Gumbel noise draws from softmax(logits / T). Masked diffusion draws
among ~10^5 tokens thousands of times, so rare noise decides often: one 32-bit uniform in float32
ends at a noise of 16.6 and samples as if the temperature were lower (arXiv:2409.02908v6). The
released sampler works in float64 for that reason, which NPUs do not have. Here 64-bit uniforms are
evaluated in float64 on the host, and few are needed: the maximum over the vocabulary is found in
two steps, first a group of tokens by the noise of its summed weight, then a token inside it, which
has the same distribution and takes about 2 sqrt(V) draws instead of V.

Shape letters: S positions, N rows, V vocabulary rows, K draws per position.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, UInt64
from torch import Tensor

from jaxllada.common.noise import SAMPLE, raw_draws

_TOKEN, _ORDER, _SCHEDULE = 0, 1, 4
_BEFORE_ANSWER = 2  # added to the stream for positions before the answer
COLDEST = 1e-30
"""Temperatures below are taken as this one: their inverse would not be finite in float32."""


class RowSeed(NamedTuple):
    """Names the random numbers of one row: what is drawn depends on nothing else."""

    seed: int
    row: int = 0


def gumbel_from_words(words: UInt64[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Turns 64 uniform bits into one draw of -log(-log(u)), u = (bits + 1/2) / 2**64.

    Covers [-3.81, 45.05]. 1 - u is taken from the complemented bits, so neither u near 0 nor u near
    1 loses digits.
    """
    mirrored = words >> np.uint64(63) == 1  # u >= 1/2: the small one of the two is 1 - u
    small = (np.where(mirrored, ~words, words) + 0.5) * 2.0**-64
    # -log(u) is an exponential draw whichever end u is measured from.
    exponential = np.where(mirrored, -np.log1p(-small), -np.log(small))
    return (-np.log(exponential)).astype(np.float32)


def groups_of(vocabulary: int) -> tuple[int, int]:
    """Splits a vocabulary into equal groups of neighbours: (groups, tokens of each).

    A power of two near the square root; the last group may be part empty.
    """
    width = 2 ** math.ceil(math.log2(math.sqrt(vocabulary)))
    return -(-vocabulary // width), width


def token_noise(
    seeds: Sequence[RowSeed], step: int, first_slot: int, slots: int, vocabulary: int
) -> Float32[np.ndarray, "B S K"]:
    """Gumbel noise of `slots` positions from `first_slot` on, counted from the answer's start."""
    count = sum(groups_of(vocabulary))
    return gumbel_from_words(_words(seeds, step, first_slot, slots, count, _TOKEN))


def order_noise(
    seeds: Sequence[RowSeed], step: int, first_slot: int, slots: int
) -> Float32[np.ndarray, "B S"]:
    """Draws from U[0, 1) that rank positions where the order is random."""
    return _uniform(_words(seeds, step, first_slot, slots, 1, _ORDER)[..., 0])


def order_gumbel(
    seeds: Sequence[RowSeed], step: int, first_slot: int, slots: int
) -> Float32[np.ndarray, "B S"]:
    """Gumbel noise on the scores that positions are ordered by."""
    return gumbel_from_words(_words(seeds, step, first_slot, slots, 1, _ORDER)[..., 0])


def schedule_noise(seeds: Sequence[RowSeed], slots: int) -> Float32[np.ndarray, "B N"]:
    """Draws from U[0, 1) for the places of an answer: when a mask goes."""
    return _uniform(_words(seeds, 0, 0, slots, 1, _SCHEDULE)[..., 0])


def _uniform(words: UInt64[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    # 24 bits, so that rounding to float32 does not reach 1.
    return ((words >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def _words(
    seeds: Sequence[RowSeed], step: int, first_slot: int, slots: int, count: int, stream: int
) -> UInt64[np.ndarray, "B S K"]:
    """`count` words per position, which depend on the row's seed, the step and the position only.

    A step works on one block, so positions are counted from its start; those before the answer
    (masks in a prompt) from the answer backwards.
    """
    before = min(slots, max(0, -first_slot))

    def draw(seed: RowSeed, size: int, stream: int) -> np.ndarray:
        index = seed.row << 32 | step
        return raw_draws(seed.seed, 256 * SAMPLE + stream, index, size * count)

    parts = []
    for seed in seeds:
        behind = draw(seed, slots - before, stream).reshape(-1, count)
        if before:
            front = draw(seed, before, stream + _BEFORE_ANSWER).reshape(-1, count)
            behind = np.concatenate([front[::-1], behind])
        parts.append(behind)
    return np.stack(parts)


def draw_tokens(
    logits: Float[Tensor, "N V"], noise: Float[Tensor, "N K"], temperature: float
) -> Int[Tensor, " N"]:
    """Draws a token of each row from softmax(logits / temperature) with the noise given.

    The largest of all noisy logits of a group is distributed as the logarithm of the group's summed
    weights plus one draw of noise; given the group, its tokens compete among themselves.
    """
    groups, width = groups_of(logits.shape[1])
    scores = logits - logits.amax(dim=1, keepdim=True)
    scores.div_(max(temperature, COLDEST))
    scores = F.pad(scores, (0, groups * width - logits.shape[1]), value=-math.inf)
    scores = scores.view(-1, groups, width)
    group = (torch.logsumexp(scores, dim=2) + noise[:, :groups]).argmax(dim=1)
    inside = scores.gather(1, group[:, None, None].expand(-1, 1, width))[:, 0]
    return group * width + (inside + noise[:, groups:]).argmax(dim=1)
