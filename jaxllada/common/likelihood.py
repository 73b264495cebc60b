"""Masks for the Monte Carlo estimate of an answer's likelihood, drawn on the host.

Eq. 6 of LLaDA (arXiv:2502.09992v3): log p(answer | prompt) is bounded by the mean, over l ~
U{1..L} and over sets of l answer positions, of L / l times the summed log-probability of the
hidden tokens. As in the released estimator, the l of one batch are spread evenly from one random
start; each is uniform but for ties of rounding, which go to even numbers. The masks are a function
of (seed, L, batch) alone: every backend sees the same ones.

Shape letters: B masks of one batch, L answer positions.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.noise import LIKELIHOOD, raw_draws, uniforms

_START, _SETS = 256 * LIKELIHOOD, 256 * LIKELIHOOD + 1


class Round(NamedTuple):
    """Masks whose sizes are spread evenly, drawn together."""

    is_masked: Bool[np.ndarray, "B L"]
    counts: Int[np.ndarray, " B"]
    """Hidden positions of each row, at least 1."""


def mask_rounds(length: int, config: LikelihoodConfig, seed: int | None = None) -> Iterator[Round]:
    """Yields the masks of every round for an answer of `length` tokens.

    `seed` replaces that of the config.
    """
    for number in range(config.num_rounds):
        yield mask_round(length, config, number, seed)


def mask_round(
    length: int, config: LikelihoodConfig, number: int, seed: int | None = None, drawing: int = 0
) -> Round:
    """Returns the masks of round `number`; every `drawing` (below 2**32) has masks of its own.

    Answers of different lengths share their random numbers: the place of the first mask count, as a
    share of the length, and the order in which the positions both have are hidden.
    """
    seed = config.seed if seed is None else seed
    offset = drawing * 2**32
    start = 1 + int(uniforms(seed, _START, offset + number, 1)[0] * length)
    counts = stratified_counts(start, length, config.batch_size)
    first = offset + number * config.batch_size
    rows = [_hidden(seed, first + row, length, count) for row, count in enumerate(counts)]
    return Round(np.stack(rows), counts)


def every_round(length: int) -> Iterator[Round]:
    """Yields all sets of hidden positions, those of one size at a time.

    The mean over sizes of the mean over sets is the expectation of Eq. 6.
    """
    for count in range(1, length + 1):
        sets = list(itertools.combinations(range(length), count))
        is_masked = np.zeros((len(sets), length), bool)
        for row, chosen in enumerate(sets):
            is_masked[row, list(chosen)] = True
        yield Round(is_masked, np.full(len(sets), count))


def stratified_counts(start: int, length: int, batch: int) -> Int[np.ndarray, " batch"]:
    """Spreads `batch` mask counts over 1..length from `start` on, as the release does.

    Steps of length / batch, rounded half to even. The release takes them in float32, which decides
    some ties differently for batches that are no power of two.
    """
    places = start + np.arange(batch) * length / batch
    return (np.rint(places).astype(np.int64) - 1) % length + 1


def _hidden(seed: int, row: int, length: int, count: int) -> np.ndarray:
    order = np.argsort(raw_draws(seed, _SETS, row, length), kind="stable")
    is_masked = np.zeros(length, bool)
    is_masked[order[:count]] = True
    return is_masked


def checked_tokens(
    prompt: Any, answer: Any, model: ModelConfig, *, extra: int = 0, where: str = ""
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " L"]]:
    """Returns both as int32 rows; raises `UserError` for what the model cannot be asked.

    `extra` tokens are shown behind the answer; `where` begins every message.
    """
    rows = []
    for name, given in (("prompt", prompt), ("answer", answer)):
        tokens = np.asarray(given)
        if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
            raise UserError(
                f"{where}{name} has shape {tokens.shape} and type {tokens.dtype}; expected one row"
                " of integer token ids"
            )
        wrong = np.flatnonzero((tokens < 0) | (tokens >= model.rows))
        if len(wrong):
            raise UserError(
                f"{where}{name} holds id {tokens[wrong[0]]} at position {wrong[0]},"
                f" outside the {model.rows} rows of the embedding"
            )
        rows.append(tokens.astype(np.int32))
    total = len(rows[0]) + len(rows[1]) + extra
    if not len(rows[1]):
        raise UserError(f"{where}answer is empty; at least one token is needed")
    if total > model.max_sequence_length:
        raise UserError(
            f"{where}prompt and answer have {len(rows[0])} + {len(rows[1]) + extra} = {total}"
            f" tokens, more than max_sequence_length={model.max_sequence_length}"
        )
    return rows[0], rows[1]
