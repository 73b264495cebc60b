"""The validation bound under fixed noise, with its standard error and two baselines.

The bound is equation (3) of LLaDA (arXiv:2502.09992v3) in nats per token: an upper bound on the
negative log-likelihood. The noise is a function of the seed and the row, with mask rates spread
evenly over all rows and draws, so two evaluations differ by the weights alone.

Shape letters: B rows, L positions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxllada.common.data.batches import Batch
from jaxllada.common.errors import UserError
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sharding import global_batch, replicated
from jaxllada.train.step import Counts, DeviceBatch, count_by_rate, token_losses

Tree = Any


class RowSums(NamedTuple):
    """Sums of one batch: the bound's terms (nats) and counted tokens of each row, and counts."""

    nats: Float[Array, " B"]
    tokens: Float[Array, " B"]
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation; everything in nats per token or shares of masked tokens.

    `standard_error` is that of drawing other rows (and noise): the bound is a ratio of sums over
    rows, each row averaged over its draws; spreading the mask rates evenly makes it an upper
    estimate.
    """

    bound: float
    standard_error: float
    accuracy: float
    nll_by_rate: tuple[float | None, ...]
    accuracy_by_rate: tuple[float | None, ...]
    rows: int
    tokens: int
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def row_sums(model: MaskPredictor, batch: DeviceBatch, *, mesh: Mesh | None = None) -> RowSums:
    """Evaluates one [1, B, L] batch."""
    piece = jax.tree.map(lambda leaf: leaf[0], batch)
    weights = piece.is_masked / piece.mask_rate[:, None]
    _, nll, correct = token_losses(model, piece, weights, mesh=mesh)
    nats = jnp.sum(weights * nll, axis=1)
    tokens = jnp.sum(piece.maskable, axis=1, dtype=jnp.float32)
    return RowSums(nats, tokens, count_by_rate(nll, correct, piece.is_masked, piece.mask_rate))


def make_evaluator(graphdef: Any, mesh: Mesh) -> Callable[[Tree, Iterable[Batch], int], Evaluation]:
    """Compiles `evaluate(params, batches, draws)`; `batches` come from `evaluation_batches`."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Tree, batch: DeviceBatch) -> RowSums:
        return row_sums(nnx.merge(graphdef, params), batch, mesh=mesh)

    def evaluate(params: Tree, batches: Iterable[Batch], draws: int) -> Evaluation:
        parts = [sums(params, global_batch(mesh, batch, axis=1)) for batch in batches]
        return summarize(jax.device_get(parts), draws)

    return evaluate


def summarize(parts: list[RowSums], draws: int) -> Evaluation:
    """Joins the sums of all batches; row r holds draw r % draws of data row r // draws."""
    nats = np.concatenate([np.asarray(part.nats, np.float64) for part in parts])
    tokens = np.concatenate([np.asarray(part.tokens, np.float64) for part in parts])
    used = tokens > 0
    nats = nats[used].reshape(-1, draws).mean(axis=1)
    tokens = tokens[used].reshape(-1, draws).mean(axis=1)
    nll, correct, masked = (
        np.sum([np.asarray(array, np.float64) for array in arrays], axis=0)
        for arrays in zip(*(part.counts for part in parts), strict=True)
    )
    bound = nats.sum() / tokens.sum()
    rows = len(nats)
    spread = np.sum((nats - bound * tokens) ** 2) * rows / max(1, rows - 1)
    return Evaluation(
        bound=float(bound),
        standard_error=float(math.sqrt(spread) / tokens.sum()),
        accuracy=float(correct.sum() / max(1.0, masked.sum())),
        nll_by_rate=shares(nll, masked),
        accuracy_by_rate=shares(correct, masked),
        rows=rows,
        tokens=int(tokens.sum()),
        draws=draws,
    )


def shares(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, ...]:
    """sums / counts for each bin, None where nothing was counted."""
    return tuple(float(s / n) if n else None for s, n in zip(sums, counts, strict=True))


def unigram_bound(
    train_counts: Int[np.ndarray, " V"], validation_counts: Int[np.ndarray, " V"]
) -> float:
    """Cross-entropy in nats per token of validation text under the frequencies of training text.

    Add-one smoothing gives tokens never seen in training a finite cost.
    """
    total = validation_counts.sum()
    if total == 0:
        raise UserError("the validation text holds no tokens")
    smoothed = train_counts.astype(np.float64) + 1
    return float(-(validation_counts * np.log(smoothed / smoothed.sum())).sum() / total)


def uniform_bound(vocab_size: int) -> float:
    """Cost in nats per token of guessing every token of the vocabulary alike."""
    return math.log(vocab_size)
