"""One optimiser step: pure, compiled once, the same for any cut of the global batch.

The weights of the loss are computed over the whole [A, B, L] batch before the scan over its A
micro-batches, so every micro-batch adds its share of one global sum and nothing is averaged twice
(LLaDA, arXiv:2502.09992v3, equation 3).

Shape letters: A micro-batches, B rows, L positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxllada.diffusion.chunked import RowLosses, chunked_cross_entropy
from jaxllada.diffusion.loss import LossNorm, loss_weights
from jaxllada.models.lora import assemble
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.train.counts import Counts, DeviceBatch, StepMetrics, count_all
from jaxllada.train.optim import average, descend
from jaxllada.train.state import TrainState

Tree = Any


def token_losses(
    model: MaskPredictor,
    batch: DeviceBatch,
    weights: Float[Array, "B L"],
    key: PRNGKeyArray | None = None,
    *,
    mesh: Mesh | None = None,
) -> RowLosses:
    """Returns sum(weights * cross-entropy) in nats and what is known of each token [B, L].

    `batch` is one micro-batch [B, L]. Where the weight is 0 all but the sum mean nothing.
    `is_watched` is where the model would put the padding token, for a batch with classes.
    """
    hidden, bias = model.hidden(batch.noisy, batch.visible, key=key), model.head_bias
    if model.config.scale_logits:
        hidden = hidden * jnp.asarray(model.logit_scale, hidden.dtype)
        bias = None if bias is None else bias * model.logit_scale
    losses = chunked_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_weight,
        batch.tokens.reshape(-1),
        weights.reshape(-1),
        head_bias=bias,
        watched=None if batch.classes is None else model.config.pad_token_id,
        mesh=mesh,
    )
    return RowLosses(losses.loss, *(part.reshape(weights.shape) for part in losses[1:]))


def loss_and_gradient(
    params: Tree,
    batch: DeviceBatch,
    key: PRNGKeyArray | None,
    *,
    graphdef: Any,
    loss_norm: LossNorm,
    mesh: Mesh | None = None,
    frozen: Tree | None = None,
) -> tuple[Float[Array, ""], Counts, Tree]:
    """Returns the loss of a global batch, its counts and its gradient (float32) in `params`.

    `frozen` are the weights below adapters (`models.lora.divide`).
    """
    weights = loss_weights(batch.is_masked, batch.mask_rate, batch.maskable, norm=loss_norm)

    pieces = batch.tokens.shape[0]
    items = (batch, weights, None if key is None else jax.random.split(key, pieces))

    def micro(params: Tree, piece: DeviceBatch, weights: Array, key: PRNGKeyArray | None) -> Any:
        model = assemble(graphdef, params, frozen, key)
        losses = token_losses(model, piece, weights, key, mesh=mesh)
        return losses.loss, count_all(losses, piece)

    def gradient(item: Any) -> tuple[Array, Counts, Tree]:
        (loss, counts), grads = jax.value_and_grad(micro, has_aux=True)(params, *item)
        return loss, counts, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)

    def first(items: Any) -> tuple[Array, Counts, Tree]:
        return gradient(jax.tree.map(lambda leaf: leaf[0], items))

    if pieces == 1:
        return first(items)

    def accumulate(total: Any, item: Any) -> Any:
        return jax.tree.map(jnp.add, total, gradient(item)), None

    shapes = jax.eval_shape(first, items)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(accumulate, zeros, items)[0]


def train_step(
    state: TrainState,
    batch: DeviceBatch,
    learning_rate: Float[Array, ""],
    cursor: Int[Array, ""],
    frozen: Tree | None = None,
    *,
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    loss_norm: LossNorm,
    ema_decay: float,
    dropout_seed: int | None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One update from a global batch, or none when its loss or gradient is not finite.

    `cursor` is the number of the batch in the data; the dropout key is a function of
    (`dropout_seed`, `cursor`) alone. `frozen` are the weights below adapters, if any. Bind the
    keyword arguments with `functools.partial`, then `jax.jit(..., donate_argnums=0)`.
    """
    key = None
    if dropout_seed is not None:
        key = jax.random.fold_in(jax.random.key(dropout_seed), cursor)
    loss, counts, grads = loss_and_gradient(
        state.params,
        batch,
        key,
        graphdef=graphdef,
        loss_norm=loss_norm,
        mesh=mesh,
        frozen=frozen,
    )
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def update(_: None) -> tuple[Tree, Any, Tree]:
        direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = descend(state.params, direction, learning_rate)
        ema = None if state.ema is None else average(state.ema, params, ema_decay, state.step)
        return params, opt_state, ema

    def keep(_: None) -> tuple[Tree, Any, Tree]:
        return state.params, state.opt_state, state.ema

    # A branch, not a selection: one copy of the state at a time, updated in place.
    params, opt_state, ema = jax.lax.cond(is_finite, update, keep, None)

    skipped = jnp.where(is_finite, 0, state.skipped + 1)
    skipped_total = state.skipped_total + jnp.where(is_finite, 0, 1)
    metrics = StepMetrics(
        loss,
        grad_norm,
        counts,
        jnp.sum(batch.maskable, dtype=jnp.float32),
        skipped,
        skipped_total,
    )
    return TrainState(state.step + 1, params, opt_state, ema, skipped, skipped_total), metrics
