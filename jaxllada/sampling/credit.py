"""What a position predicted in the earlier calls of its block, and how it counts in the next.

Trace credit (CreditDecoding, arXiv:2510.06133v2). The published matrix has an entry per position
and vocabulary row; a call adds to one of them, so a position has as many credits as its block has
had calls, and only those are kept.

Shape letters: B rows, S positions of the window, N gathered positions, K credits of a position,
V vocabulary rows.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.logits import first_maximum, without_forbidden


class Credits(NamedTuple):
    """Tokens that were predicted, and how much they have; entries with nothing hold any token."""

    tokens: Int[Array, "*at K"]
    amounts: Float[Array, "*at K"]


def no_credits(rows: int, policy: Policy) -> Credits | tuple[()]:
    """Room for the active block of so many rows; empty where the selection knows no credit."""
    if not policy.has_credit:
        return ()
    shape = (rows, policy.window, policy.block_length)
    return Credits(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def credited(
    logits: Float[Array, "V N"],
    credits: Credits,
    call: Int[Array, ""],
    inputs: Inputs,
    policy: Policy,
) -> tuple[Float[Array, "V N"], Credits]:
    """Gives the likeliest token of each position its credit, and adds all credits to the logits.

    `credits` are those [N, K] of the same positions after the calls of this block before, of which
    there are `call`: at 0 they are nothing.
    """
    alpha, beta, gamma = inputs.credit
    logits = without_forbidden(logits, inputs, policy)
    likeliest, peak = first_maximum(logits, policy.mask_id)
    probability = 1 / jnp.sum(jnp.exp(logits - peak), axis=0)
    tokens, amounts = credits.tokens, jnp.where(call == 0, 0, credits.amounts * beta)
    is_known = (tokens == likeliest[:, None]) & (amounts > 0)
    is_next = lax.broadcasted_iota(jnp.int32, tokens.shape, 1) == call
    place = jnp.where(jnp.any(is_known, axis=1, keepdims=True), is_known, is_next)
    tokens = jnp.where(place, likeliest[:, None], tokens)
    amounts += jnp.where(place, (probability**gamma)[:, None], 0)
    column = jnp.arange(len(tokens))[:, None]
    logits = logits.at[tokens, column].add(alpha * jnp.log1p(amounts))
    return logits, Credits(tokens, amounts)
