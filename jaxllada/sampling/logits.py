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

from jaxllada.sampling.gumbel import gumbel
from jaxllada.sampling.policy import Policy


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
    logits: Float[Array, "V N"], keys: Array, temperature: Float[Array, ""], policy: Policy
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns the predicted token of each position, and its probability in float32.

    Noise takes part in the choice of the token and not in its probability.
    """
    token = lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    if policy.never_eos:
        logits = jnp.where(token == policy.eos_id, -jnp.inf, logits)
    scores = logits
    if policy.is_noisy:
        draw = jax.vmap(lambda key: gumbel(jax.random.fold_in(key, 0), len(logits)), out_axes=1)
        scores = logits + temperature * draw(keys)
    if policy.never_mask:
        scores = jnp.where(token == policy.mask_id, -jnp.inf, scores)
    chosen = first_argmax(scores)
    for dropped in policy.zeroed_ids:
        logits = jnp.where(token == dropped, -jnp.inf, logits)
    peak = jnp.max(logits, axis=0)
    value = jnp.take_along_axis(logits, chosen[None], axis=0)[0]
    return chosen, jnp.exp(value - peak) / jnp.sum(jnp.exp(logits - peak), axis=0)


def first_argmax(scores: Float[Array, "V N"]) -> Int[Array, " N"]:
    """Returns the lowest index of each column's maximum.

    In two levels: XLA's own argmax carries an index through the whole column, which CPUs do not
    vectorise.
    """
    width = math.gcd(len(scores), 128)
    if width < 16:
        return jnp.argmax(scores, axis=0).astype(jnp.int32)
    chunks = scores.reshape(-1, width, scores.shape[1])
    best = jnp.argmax(jnp.max(chunks, axis=1), axis=0)
    inside = chunks[best, :, jnp.arange(scores.shape[1])]
    return (best * width + jnp.argmax(inside, axis=1)).astype(jnp.int32)
