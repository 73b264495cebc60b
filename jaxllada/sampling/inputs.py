"""The data a sampling run is carried out on.

Shape letters: B rows, L canvas length.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.canvas import Canvas
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.unmasking import transfers, unmasking_plan


class Inputs(NamedTuple):
    """What stays the same during a run."""

    visible: Bool[Array, "B L"]
    """Keys that may be attended to."""
    positions: Int[Array, "B L"]
    """Rotary positions."""
    known: Bool[Array, "B L"]
    """Prompt positions that guidance hides for the unconditional prediction."""
    keys: Array
    """One random key per row."""
    transfers: Int[Array, "B L"]
    """Tokens each call commits: `common.unmasking.transfers`."""
    prompt_length: Int[Array, ""]
    """First position of the first block."""
    end: Int[Array, ""]
    """First position behind the answer."""
    calls_per_block: Int[Array, ""]
    temperature: Float[Array, ""]
    cfg_scale: Float[Array, ""]

    @classmethod
    def of(cls, canvas: Canvas, config: SamplingConfig, keys: Array) -> "Inputs":
        """Puts a canvas and the numbers of a config on the device; one key per row."""
        plan, policy = unmasking_plan(config), canvas.policy
        counts = transfers(plan, canvas.tokens, policy.mask_id, canvas.prompt_length)
        return cls(
            visible=jnp.asarray(canvas.visible),
            positions=jnp.asarray(canvas.positions),
            known=jnp.asarray(canvas.known),
            keys=keys,
            transfers=jnp.asarray(counts),
            prompt_length=jnp.int32(canvas.prompt_length),
            end=jnp.int32(canvas.prompt_length + canvas.gen_length),
            calls_per_block=jnp.int32(plan.calls_per_block),
            temperature=jnp.float32(config.temperature),
            cfg_scale=jnp.float32(config.cfg_scale),
        )
