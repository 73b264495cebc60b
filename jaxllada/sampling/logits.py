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
from jaxllada.models.packed import Packed
from jaxllada.native.head import PackedHead, likeliest
from jaxllada.sampling.filters import filtered
from jaxllada.sampling.gumbel import TOKEN, gumbel
from jaxllada.sampling.inputs import Inputs


class Head(NamedTuple):
    """The output head as plain arrays."""

    weight: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    scale: float
    packed: PackedHead | None
    """The weight as a kernel reads it, if it does."""

    @classmethod
    def of(cls, model: Any, packed: Packed) -> "Head":
        """Takes the head of a model, its weight in the activation type."""
        weight = model.head_weight.astype(model.compute.dtype)
        return cls(weight, model.head_bias, model.logit_scale, packed.head)


def vocabulary_logits(head: Head, rows: Float[Array, "N D"]) -> Float[Array, "V N"]:
    """Multiplies in the activation type; sums and result are float32."""
    logits = lax.dot_general(
        head.weight, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    if head.bias is not None:
        logits += head.bias.astype(jnp.float32)[:, None]
    return logits if head.scale == 1 else logits * head.scale


COLDEST = 1e-30
"""Temperatures below are taken as this one where logits are divided: no result is infinite."""


class Reading(NamedTuple):
    """What the logits of each position say."""

    tokens: Int[Array, " N"]
    confidence: Float[Array, " N"]
    """In [0, 1], float32: what a trace shows, and what thresholds are compared with."""
    score: Float[Array, " N"]
    """What puts positions in order; the confidence itself unless they are ranked by entropy."""


def is_plain(inputs: Inputs, policy: Policy) -> bool:
    """Whether a call needs no more of the logits than the largest and the sum of all."""
    changes = policy.is_guided or policy.is_smooth or policy.has_credit or policy.end_think_ids
    own = not (policy.zeroed_ids or inputs.unsure.size or policy.ranks_draws or policy.is_noisy)
    return own and not changes and policy.rank in ("probability", "random")


def read_at_once(head: Head, rows: Float[Array, "N D"], inputs: Inputs, policy: Policy) -> Reading:
    """`read_logits` of `vocabulary_logits` in one kernel, for calls that are plain."""
    never = jnp.array([policy.eos_id] if policy.never_eos else [], jnp.int32)
    found = likeliest(
        head.weight,
        rows,
        head.bias,
        scale=head.scale,
        hidden=jnp.concatenate([never, inputs.suppressed.astype(jnp.int32)]),
        excluded=policy.mask_id if policy.never_mask else -1,
        packed=head.packed,
    )
    confidence = 1 / found.total
    return Reading(found.token, confidence, confidence)


def read_logits(
    logits: Float[Array, "V N"], keys: Array | None, inputs: Inputs, policy: Policy
) -> Reading:
    """Returns the predicted token of each position, and how sure the model is.

    Noise, one key per position, takes part in the choice of the token and not in its confidence.
    """
    token = lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    logits = without_forbidden(logits, inputs, policy)
    excluded = policy.mask_id if policy.never_mask else None
    drawn = logits
    if policy.ranks_draws:
        if policy.never_mask:
            drawn = drawn.at[policy.mask_id].set(-jnp.inf)
        if policy.is_noisy:
            drawn /= jnp.maximum(inputs.temperature, COLDEST)
        logits = drawn = filtered(drawn, inputs, policy)
    scores = drawn
    if keys is not None:
        draw = jax.vmap(lambda key: gumbel(jax.random.fold_in(key, TOKEN), len(logits)), out_axes=1)
        scores = drawn + (1 if policy.ranks_draws else inputs.temperature) * draw(keys)
    chosen, peak = first_maximum(scores, excluded)
    is_own = not policy.zeroed_ids and not inputs.unsure.size
    if keys is None and is_own and policy.rank in ("probability", "random"):
        confidence = 1 / jnp.sum(jnp.exp(logits - peak), axis=0)
        return Reading(chosen, confidence, confidence)
    for dropped in policy.zeroed_ids:
        logits = jnp.where(token == dropped, -jnp.inf, logits)
    if inputs.unsure.size:
        logits = logits.at[inputs.unsure].set(-jnp.inf)
    if policy.never_mask and policy.rank in ("margin", "entropy"):
        logits = logits.at[policy.mask_id].set(-jnp.inf)
    confidence, score = _sureness(logits, chosen, token, policy)
    return Reading(chosen, confidence, score)


def without_forbidden(
    logits: Float[Array, "V N"], inputs: Inputs, policy: Policy
) -> Float[Array, "V N"]:
    """Puts minus infinity where a token is never to be predicted, but for the mask."""
    if policy.never_eos:
        token = lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        logits = jnp.where(token == policy.eos_id, -jnp.inf, logits)
    if inputs.suppressed.size:
        logits = logits.at[inputs.suppressed].set(-jnp.inf)
    return logits


def _sureness(
    logits: Float[Array, "V N"], chosen: Int[Array, " N"], token: Int[Array, "V N"], policy: Policy
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    peak = jnp.max(logits, axis=0)
    weight = jnp.exp(logits - peak)
    total = jnp.sum(weight, axis=0)
    match policy.rank:
        case "margin":
            best, _ = first_maximum(logits)
            second = jnp.max(jnp.where(token == best, 0, weight), axis=0)
            lead = (1 - second) / total
            return lead, lead
        case "entropy":
            # Weights of 0 stand for logits of minus infinity.
            energy = jnp.sum(jnp.where(weight > 0, weight * (logits - peak), 0), axis=0)
            entropy = jnp.maximum(jnp.log(total) - energy / total, 0)
            return jnp.exp(-entropy), -entropy
        case _:
            value = jnp.take_along_axis(logits, chosen[None], axis=0)[0]
            confidence = jnp.exp(value - peak) / total
            return confidence, confidence


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
