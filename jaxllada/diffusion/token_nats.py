"""What the head says about single tokens: their cross-entropy and that of the most likely ones.

For measuring alone: no gradients, and logits of a chunk of rows at a time. Rows that are not asked
for are sorted behind the others and skipped.

Shape letters: N rows, C rows of a chunk, D model width, V embedding rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllada.native.head import PackedHead, has_kernel, likeliest


class TokenNats(NamedTuple):
    """One entry a row; 0 and False where nothing was asked."""

    nll: Any
    """[N] float32: -log p of the target, nats."""
    best: Any
    """[N] float32: -log p of the most likely token, nats."""
    is_best: Any
    """[N] bool: whether the target is the most likely token."""


def token_nats(
    hidden: Float[Array, "N D"],
    head_weight: Float[Array, "V D"],
    targets: Int[Array, " N"],
    asked: Bool[Array, " N"],
    *,
    head_bias: Float[Array, " V"] | None = None,
    packed: PackedHead | None = None,
    chunk: int = 256,
) -> TokenNats:
    """Reads softmax(hidden head_weight^T + head_bias) at the targets of the rows asked for.

    Products run in the type of `hidden`, sums and softmax in float32. `packed` is the head weight
    as a kernel reads it.
    """
    count = len(targets)
    chunk = min(chunk, count)
    read = _read
    if has_kernel(head_weight):
        read = functools.partial(_read_at_once, packed)
    order = jnp.argsort(~asked, stable=True)
    order = jnp.pad(order, (0, -count % chunk), constant_values=count)
    chunks = (jnp.sum(asked) + chunk - 1) // chunk

    def step(state: tuple[Array, TokenNats]) -> tuple[Array, TokenNats]:
        index, found = state
        # Rows past the end (index `count`) read as zeros and are dropped on writing.
        where = jax.lax.dynamic_slice_in_dim(order, index * chunk, chunk)
        rows, ids, counts = (
            x.at[where].get(mode="fill", fill_value=0) for x in (hidden, targets, asked)
        )
        chosen, top, total = read(rows, head_weight, ids, head_bias)
        best = jnp.log(total)
        part = TokenNats(
            jnp.where(counts, best + top - chosen, 0),
            jnp.where(counts, best, 0),
            counts & (chosen == top),
        )
        written = (
            whole.at[where].set(values, mode="drop", unique_indices=True)
            for whole, values in zip(found, part, strict=True)
        )
        return index + 1, TokenNats(*written)

    nothing = jnp.zeros(count, jnp.float32)
    start = (jnp.int32(0), TokenNats(nothing, nothing, jnp.zeros(count, jnp.bool_)))
    return jax.lax.while_loop(lambda state: state[0] < chunks, step, start)[1]


Read = tuple[Float[Array, " C"], Float[Array, " C"], Float[Array, " C"]]
"""Logits of the targets, the largest ones, and sums of exp(logit - largest)."""


def _read(rows: Array, head: Array, ids: Array, bias: Array | None) -> Read:
    axes = (((1,), (1,)), ((), ()))
    logits = jax.lax.dot_general(rows, head, axes, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    top = jnp.max(logits, axis=1)
    chosen = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]
    return chosen, top, jnp.sum(jnp.exp(logits - top[:, None]), axis=1)


def _read_at_once(
    packed: PackedHead | None, rows: Array, head: Array, ids: Array, bias: Array | None
) -> Read:
    found = likeliest(head, rows, bias, packed=packed)
    axes = (((1,), (1,)), ((0,), (0,)))
    chosen = jax.lax.dot_general(rows, head[ids], axes, preferred_element_type=jnp.float32)
    chosen = chosen if bias is None else chosen + bias[ids].astype(jnp.float32)
    # Sums in another order may differ in the last bit: a target that is the largest is that one.
    return jnp.where(found.token == ids, found.logit, chosen), found.logit, found.total
