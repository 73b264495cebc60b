"""Cross-entropy over a large vocabulary without ever holding all logits.

The head of a 126,464-token vocabulary is most of a small model's work, and [B, L, V] logits most
of any model's memory. So: rows without weight (unmasked tokens) are sorted behind the others and
skipped; the rest are walked in chunks; and while a chunk's logits exist, the gradients with
respect to its activations and to the head are computed too, so that the backward pass has nothing
left to do. Equal to the oracle in `loss.py` up to the order of float32 sums.

Shape letters: N rows, C rows of a chunk, D model width, V embedding rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

ROW_AXES = ("data", "fsdp")
"""Mesh axes over which rows are split; the head itself may be split over any other axis."""


class RowLosses(NamedTuple):
    """What one pass over the rows yields."""

    loss: Any
    """Float32 scalar: sum of weight * cross-entropy, nats; the only differentiable part."""
    nll: Any
    """[N] float32: cross-entropy of each row in nats; 0 where the weight is 0."""
    is_correct: Any
    """[N] bool: whether the most likely token is the target; False where the weight is 0."""
    is_watched: Any
    """[N] bool: whether it is the watched token; False where the weight is 0 or none is given."""


class _Rows(NamedTuple):
    hidden: Any  # [N, D]
    targets: Any  # [N]
    weights: Any  # [N]


class _Gradients(NamedTuple):
    hidden: Any  # [N, D]
    head: Any  # [V, D]
    bias: Any  # [V] or None


def chunked_cross_entropy(
    hidden: Float[Array, "N D"],
    head_weight: Float[Array, "V D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    *,
    head_bias: Float[Array, " V"] | None = None,
    chunk: int = 256,
    watched: int | None = None,
    mesh: Mesh | None = None,
) -> RowLosses:
    """Sums weights * cross-entropy of softmax(hidden head_weight^T + head_bias), in float32.

    Products run in the type of `hidden`, sums in float32; the head's gradient is accumulated in
    float32 over all chunks. Work and time follow the number of rows with a weight, not N.

    Args:
        hidden: activations after the final norm.
        head_weight: one row a token.
        targets: token ids.
        weights: 0 for rows that do not count, any float otherwise; no gradient flows into them.
        head_bias: of models with `include_bias`.
        chunk: rows whose logits exist at one time; memory is 2 * chunk * V floats.
        watched: a token; `is_watched` tells where the model would put it.
        mesh: splits rows over its axes `data` and `fsdp`; N must divide by their product.
    """
    rows = _Rows(hidden, targets, jax.lax.stop_gradient(weights.astype(jnp.float32)))
    head_weight = head_weight.astype(hidden.dtype)
    with jax.named_scope("chunked_cross_entropy"):
        return _row_losses(rows, head_weight, head_bias, _How(chunk, watched, mesh))


class _How(NamedTuple):
    chunk: int
    watched: int | None
    mesh: Mesh | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _row_losses(rows: _Rows, head: Array, bias: Array | None, how: _How) -> RowLosses:
    return _split(rows, head, bias, how, with_gradients=False)[0]


def _row_losses_forward(
    rows: _Rows, head: Array, bias: Array | None, how: _How
) -> tuple[RowLosses, _Gradients]:
    losses, gradients = _split(rows, head, bias, how, with_gradients=True)
    # In the types of what they are gradients of; the sums over chunks were float32.
    gradients = _Gradients(
        gradients.hidden,
        gradients.head.astype(head.dtype),
        None if bias is None else gradients.bias.astype(bias.dtype),
    )
    return losses, gradients


def _row_losses_backward(
    how: _How, gradients: _Gradients, cotangent: RowLosses
) -> tuple[_Rows, Array, Array | None]:
    scaled = jax.tree.map(lambda g: g * cotangent.loss.astype(g.dtype), gradients)
    return _Rows(scaled.hidden, None, None), scaled.head, scaled.bias


_row_losses.defvjp(_row_losses_forward, _row_losses_backward)


def _split(
    rows: _Rows, head: Array, bias: Array | None, how: _How, *, with_gradients: bool
) -> tuple[RowLosses, Any]:
    """Runs `_walk` on each device's rows and adds up what is shared."""
    mesh = how.mesh
    walk = functools.partial(_walk, how=how, with_gradients=with_gradients)
    axes = () if mesh is None else tuple(a for a in ROW_AXES if mesh.shape.get(a, 1) > 1)
    if not axes:
        return walk(rows, head, bias)

    def walk_shard(rows: _Rows, head: Array, bias: Array | None) -> tuple[RowLosses, Any]:
        losses, gradients = walk(rows, head, bias, axes=axes)
        losses = losses._replace(loss=jax.lax.psum(losses.loss, axes))
        if with_gradients:
            shared = jax.lax.psum((gradients.head, gradients.bias), axes)
            gradients = _Gradients(gradients.hidden, *shared)
        return losses, gradients

    split, whole = PartitionSpec(axes), PartitionSpec()
    out = (RowLosses(whole, split, split, split), _Gradients(split, whole, whole))
    return jax.shard_map(
        walk_shard,
        mesh=mesh,
        in_specs=(_Rows(split, split, split), whole, whole),
        out_specs=out if with_gradients else (out[0], None),
        axis_names=set(axes),
        check_vma=False,
    )(rows, head, bias)


def _walk(
    rows: _Rows, head: Array, bias: Array | None,
    *, how: _How, with_gradients: bool, axes: tuple[str, ...] = (),
) -> tuple[RowLosses, Any]:  # fmt: skip
    count = rows.hidden.shape[0]
    chunk = min(how.chunk, count)
    padded = -(-count // chunk) * chunk
    counts = rows.weights != 0
    order = jnp.argsort(~counts, stable=True)
    order = jnp.pad(order, (0, padded - count), constant_values=count)
    chunks = (jnp.sum(counts) + chunk - 1) // chunk
    # All devices of a mesh walk equally far: collectives of a split head stay in step.
    chunks = jax.lax.pmax(chunks, axes) if axes else chunks

    def step(state: tuple[Array, tuple[Array, Array, Array], Any]) -> tuple[Array, Any, Any]:
        index, (nll, is_correct, is_watched), gradients = state
        # Rows past the end (index `count`) read as zeros with weight 0 and are dropped on writing.
        where = jax.lax.dynamic_slice_in_dim(order, index * chunk, chunk)
        part = jax.tree.map(lambda x: x.at[where].get(mode="fill", fill_value=0), rows)
        found, parts = _chunk(part, head, bias, how.watched, with_gradients)
        nll = nll.at[where].set(found[0], mode="drop", unique_indices=True)
        is_correct = is_correct.at[where].set(found[1], mode="drop", unique_indices=True)
        is_watched = is_watched.at[where].set(found[2], mode="drop", unique_indices=True)
        if with_gradients:
            hidden = gradients.hidden.at[where].set(parts.hidden, mode="drop", unique_indices=True)
            shared = jax.tree.map(jnp.add, (gradients.head, gradients.bias), parts[1:])
            gradients = _Gradients(hidden, *shared)
        return index + 1, (nll, is_correct, is_watched), gradients

    gradients = (
        _Gradients(
            jnp.zeros_like(rows.hidden),
            jnp.zeros(head.shape, jnp.float32),
            None if bias is None else jnp.zeros(bias.shape, jnp.float32),
        )
        if with_gradients
        else None
    )
    nothing = jnp.zeros(count, jnp.bool_)
    start = (jnp.zeros(count, jnp.float32), nothing, nothing)
    _, (nll, is_correct, is_watched), gradients = jax.lax.while_loop(
        lambda state: state[0] < chunks, step, (jnp.int32(0), start, gradients)
    )
    return RowLosses(jnp.sum(nll * rows.weights), nll, is_correct, is_watched), gradients


def _chunk(
    rows: _Rows, head: Array, bias: Array | None, watched: int | None, with_gradients: bool
) -> tuple[tuple[Array, Array, Array], Any]:
    hidden, targets, weights = rows
    logits = _contract(hidden, head, 1, 1)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    top = jnp.max(logits, axis=1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    odds = jnp.exp(logits - top[:, None])
    total = jnp.sum(odds, axis=1)
    counts = weights != 0
    nll = jnp.where(counts, jnp.log(total) + top - chosen, 0)
    is_watched = jnp.zeros_like(counts) if watched is None else logits[:, watched] == top
    found = (nll, counts & (chosen == top), counts & is_watched)
    if not with_gradients:
        return found, None
    error = odds * (weights / total)[:, None]
    error = error.at[jnp.arange(len(targets)), targets].add(-weights)
    narrow = error.astype(hidden.dtype)
    return found, _Gradients(
        _contract(narrow, head, 1, 0).astype(hidden.dtype),
        _contract(narrow, hidden, 0, 0),
        None if bias is None else jnp.sum(error, axis=0),
    )


def _contract(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
