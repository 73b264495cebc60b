"""A look ahead: where the model expects the end of an answer, before anything is committed.

One model call on the canvas as it is. Adaptive canvases decide by it (`common/lengths.py`).

Shape letters: B rows, L canvas length, D model width, V vocabulary rows, N positions of a chunk.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.models.packed import Packed
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.logits import Head, first_maximum, vocabulary_logits
from jaxllada.sampling.reader import Body, Call, PlainReader

CHUNK = 64
"""Canvas columns whose logits exist at the same time."""


@functools.partial(jax.jit, static_argnames="policy")
def foresee(
    model: Any, packed: Packed, inputs: Inputs, canvas: Int[Array, "B L"], policy: Policy
) -> tuple[Bool[Array, "B L"], Float[Array, "B L"]]:
    """Returns where the end token is the likeliest, and its probability (float32).

    What an option forbids or holds back is predicted like the rest; masks are not.
    """
    tokens, zero = canvas, jnp.int32(0)
    if policy.is_guided:
        tokens = jnp.concatenate([tokens, jnp.where(inputs.known, policy.mask_id, tokens)])
    whole = dataclasses.replace(policy, window=canvas.shape[1])
    call = Call(tokens, zero, zero, zero, zero)
    states, _ = PlainReader().read(Body.of(model, packed, inputs, policy), (), call, whole)
    head = Head.of(model, packed)
    batch, length, width = states.shape
    size = math.gcd(length, CHUNK)

    def read(rows: Float[Array, "G N D"]) -> tuple[Array, Array]:
        logits = vocabulary_logits(head, rows.reshape(-1, width))
        if policy.is_guided:
            given, unconditional = jnp.split(logits, 2, axis=1)
            logits = unconditional + (inputs.cfg_scale + 1) * (given - unconditional)
        likeliest, _ = first_maximum(logits, policy.mask_id)
        total = jax.nn.logsumexp(logits, axis=0)
        end = jnp.exp(logits[policy.eos_id] - total)
        shape = (-1, size)
        return (likeliest == policy.eos_id).reshape(shape), end.reshape(shape)

    chunks = jnp.moveaxis(states.reshape(batch, -1, size, width), 1, 0)
    is_end, end = lax.map(read, chunks)
    is_end, end = (jnp.moveaxis(x, 0, 1).reshape(-1, length) for x in (is_end, end))
    return is_end, end
