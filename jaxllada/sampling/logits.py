"""From the rows of the last layer to a token and its confidence.

Logits stand with the vocabulary first: [V, N]. The weight of the head is read row by row as it is
stored, and on CPUs this product is up to a third faster than the one that ends in [N, V].

Shape letters: N positions, D model width, V vocabulary rows.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.sampling.gumbel import gumbel


class Head(NamedTuple):
    """The output head as plain arrays."""

    weight: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    scale: float

    @classmethod
    def of(cls, model: Any) -> "Head":
        """Takes the head of a model, its weight in the activation type."""
        weight = model.head_weight.astype(model.compute.dtype)
        return cls(weight, model.head_bias, model.logit_scale)


def vocabulary_logits(head: Head, rows: Float[Array, "N D"]) -> Float[Array, "V N"]:
    """Multiplies in the activation type; sums and result are float32."""
    logits = lax.dot_general(
        head.weight, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    if head.bias is not None:
        logits += head.bias.astype(jnp.float32)[:, None]
    return logits if head.scale == 1 else logits * head.scale


def read_logits(
    logits: Float[Array, "V N"], keys: Array | None, temperature: Float[Array, ""], policy: Policy
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns the predicted token of each position, and its probability in float32.

    Noise, one key per position, takes part in the choice of the token and not in its probability.
    """
    token = lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    if policy.never_eos:
        logits = jnp.where(token == policy.eos_id, -jnp.inf, logits)
    scores = logits
    if keys is not None:
        draw = jax.vmap(lambda key: gumbel(jax.random.fold_in(key, 0), len(logits)), out_axes=1)
        scores = logits + temperature * draw(keys)
    chosen, peak = first_maximum(scores, policy.mask_id if policy.never_mask else None)
    if keys is None and not policy.zeroed_ids:
        return chosen, 1 / jnp.sum(jnp.exp(logits - peak), axis=0)
    for dropped in policy.zeroed_ids:
        logits = jnp.where(token == dropped, -jnp.inf, logits)
    peak = jnp.max(logits, axis=0)
    value = jnp.take_along_axis(logits, chosen[None], axis=0)[0]
    return chosen, jnp.exp(value - peak) / jnp.sum(jnp.exp(logits - peak), axis=0)


def first_maximum(
    scores: Float[Array, "V N"], excluded: int | None = None
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns the lowest index of each column's maximum, and the maximum.

    In two levels: XLA's own argmax carries an index through the whole column, which CPUs do not
    vectorise. `excluded` is an index that is never returned; only its chunk is looked at twice.
    """
    size, columns = scores.shape
    width = math.gcd(size, 128)
    chunks = scores.reshape(-1, width, columns)
    of_chunk = jnp.max(chunks, axis=1)
    inside = jnp.arange(width)
    if excluded is not None:
        home = excluded // width
        others = jnp.where(home * width + inside[:, None] == excluded, -jnp.inf, chunks[home])
        of_chunk = of_chunk.at[home].set(jnp.max(others, axis=0))
    best = jnp.argmax(of_chunk, axis=0)
    index = best[:, None] * width + inside
    values = chunks[best, :, jnp.arange(columns)]
    if excluded is not None:
        values = jnp.where(index == excluded, -jnp.inf, values)
    offset = jnp.argmax(values, axis=1)
    return (best * width + offset).astype(jnp.int32), jnp.max(of_chunk, axis=0)
