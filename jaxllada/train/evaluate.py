"""The validation bound under fixed noise (LLaDA, arXiv:2502.09992v3, equation 3), on devices.

Shape letters: B rows.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxllada.common.data.batches import Batch
from jaxllada.common.run.evaluation import Evaluation, summarize
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sharding import global_batch, replicated
from jaxllada.train.counts import Counts, DeviceBatch, count_all
from jaxllada.train.step import token_losses

Tree = Any


class RowSums(NamedTuple):
    """Sums of one batch: the bound's terms (nats) and counted tokens of each row, and counts."""

    nats: Float[Array, " B"]
    tokens: Float[Array, " B"]
    counts: Counts


def row_sums(model: MaskPredictor, batch: DeviceBatch, *, mesh: Mesh | None = None) -> RowSums:
    """Evaluates one [1, B, L] batch."""
    piece = jax.tree.map(lambda leaf: leaf[0], batch)
    weights = piece.is_masked / piece.mask_rate[:, None]
    losses = token_losses(model, piece, weights, mesh=mesh)
    nats = jnp.sum(weights * losses.nll, axis=1)
    tokens = jnp.sum(piece.maskable, axis=1, dtype=jnp.float32)
    return RowSums(nats, tokens, count_all(losses, piece))


def make_evaluator(graphdef: Any, mesh: Mesh) -> Callable[[Tree, Iterable[Batch], int], Evaluation]:
    """Compiles `evaluate(params, batches, draws)`; `batches` come from `evaluation_batches`."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Tree, batch: DeviceBatch) -> RowSums:
        return row_sums(nnx.merge(graphdef, params), batch, mesh=mesh)

    def evaluate(params: Tree, batches: Iterable[Batch], draws: int) -> Evaluation:
        parts = [sums(params, global_batch(mesh, batch, axis=1)) for batch in batches]
        return summarize(jax.device_get(parts), draws)

    return evaluate
