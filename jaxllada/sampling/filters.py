"""Tokens that are too unlikely to be drawn: top-k and nucleus filters without sorting.

Both keep what lies at or above a cut, so the cut is searched for, by halving the float32 numbers
between the extremes: 32 passes over the logits, exact to the last bit.

Shape letters: N positions, V vocabulary rows.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.sampling.inputs import Inputs


def filtered(scores: Float[Array, "V N"], inputs: Inputs, policy: Policy) -> Float[Array, "V N"]:
    """Puts minus infinity where a token is not to be drawn.

    The nucleus holds a token if those more likely than it sum to at most `top_p`, so the first
    beyond the sum is in; both filters look at the distribution as it comes (Dream 7B's order).
    Equally likely tokens are kept or dropped together.
    """
    cut = jnp.full(scores.shape[1], -jnp.inf)
    if policy.has_top_k:
        cut = _cut(scores, jnp.ones_like(scores), inputs.top_k - 1)
    if policy.has_top_p:
        weight = jax.nn.softmax(scores, axis=0)
        cut = jnp.maximum(cut, _cut(scores, weight, inputs.top_p))
    return jnp.where(scores >= cut, scores, -jnp.inf)


def _cut(
    scores: Float[Array, "V N"], weight: Float[Array, "V N"], budget: Array
) -> Float[Array, " N"]:
    """The lowest number such that the weight of all scores above it is within the budget."""

    def weight_above(cut: Int[Array, " N"]) -> Float[Array, " N"]:
        return jnp.sum(jnp.where(scores > _float(cut), weight, 0), axis=0)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        fits = weight_above(middle) <= budget
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    # Nothing lies above the largest score, everything above minus infinity.
    high = _ordered(jnp.max(scores, axis=0))
    low = jnp.broadcast_to(_ordered(jnp.float32(-jnp.inf)), high.shape)
    return _float(lax.fori_loop(0, 32, halve, (low, high))[1])


def _ordered(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Integers in the order of float32 numbers."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(order: Int[Array, "*n"]) -> Float[Array, "*n"]:
    bits = jnp.where(order < 0, order ^ 0x7FFFFFFF, order)
    return lax.bitcast_convert_type(bits, jnp.float32)
