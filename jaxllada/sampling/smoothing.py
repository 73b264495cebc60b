"""Masks that carry a share of what was predicted for them into the next call.

Iteration smoothing (dInfer, arXiv:2510.08666v2); `common/config/smoothing.py` has the formula.

Shape letters: B, R rows, L canvas length, S positions of the window, N positions, D model width,
V vocabulary rows.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.sampling.inputs import Inputs

Soft = Float[Array, "B L D"] | tuple[()]
"""What is added to the embeddings of masks, in the activation type; empty without smoothing."""


class Table(NamedTuple):
    """The embedding as plain arrays."""

    weight: Float[Array, "V D"]
    scale: float

    @classmethod
    def of(cls, model: Any) -> "Table":
        """Takes the embedding of a model, in the activation type."""
        config = model.config
        scale = math.sqrt(config.d_model) if config.input_emb_norm else 1.0
        return cls(model.wte[...].astype(model.compute.dtype), scale)


def no_soft(model: Any, canvas: Int[Array, "B L"], policy: Policy) -> Soft:
    """What masks carry before the first call."""
    if not policy.is_smooth:
        return ()
    return jnp.zeros((*canvas.shape, model.config.d_model), model.compute.dtype)


def expected_embedding(logits: Float[Array, "V N"], table: Table) -> Float[Array, "N D"]:
    """softmax(logits) @ E: products in the activation type, sums and result in float32."""
    weight = jnp.exp(logits - jnp.max(logits, axis=0))
    mixed = lax.dot_general(
        weight.astype(table.weight.dtype), table.weight, (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return mixed * (table.scale / jnp.sum(weight, axis=0))[:, None]


def of_masks(soft: Soft, canvas: Int[Array, "B L"], policy: Policy) -> Array | None:
    """What enters the next call: nothing at positions that hold a token by now."""
    if isinstance(soft, tuple):
        return None
    return jnp.where((canvas == policy.mask_id)[..., None], soft, 0)


def remembered(
    soft: Float[Array, "B S D"],
    expected: Float[Array, "B S D"],
    is_read: Bool[Array, "B S"],
    call: Int[Array, ""],
    inputs: Inputs,
) -> Float[Array, "B S D"]:
    """What the window carries after a call: its share of the prediction where one was made."""
    new = (inputs.weights[call] * expected).astype(soft.dtype)
    return jnp.where(is_read[..., None], new, soft)


def carried_soft(
    soft: Soft, rows: Int[np.ndarray, " R"], length: int
) -> Float[Array, "R N D"] | tuple[()]:
    """Takes rows over to a canvas of another length; new positions carry nothing."""
    if isinstance(soft, tuple):
        return ()
    taken = jnp.take(soft, rows, axis=0)[:, :length]
    return jax.lax.pad(
        taken, jnp.zeros((), taken.dtype), [(0, 0, 0), (0, length - taken.shape[1], 0), (0, 0, 0)]
    )
