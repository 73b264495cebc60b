"""A pull towards the end of thinking that grows as an answer gets longer.

Reasoning models write their thoughts before a closing sequence such as `</think>`; one that does
not come is what makes them run out of room. In every step, one logit is raised: at the first open
position of the active block, that of the token which continues the sequence, as long as the answer
does not hold it. `generate` of the release that came with iLLaDA (`end_think_logit_boost`).

Shape letters: B rows, L canvas length, S positions of the window.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.sampling.inputs import Inputs


def end_think_pull(
    canvas: Int[Array, "B L"],
    is_open: Bool[Array, "B S"],
    start: Int[Array, ""],
    inputs: Inputs,
    policy: Policy,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Returns the id that each row's first open position is pulled to, and by how much (float32).

    0 where nothing is open or the sequence is there. `start` is the window's first position.
    """
    first = start + jnp.argmax(is_open, axis=1)
    wanted = jnp.array(policy.end_think_ids, jnp.int32)
    length = len(policy.end_think_ids)
    token = jnp.broadcast_to(wanted[0], first.shape)
    for size in range(1, length):  # the longest beginning of the sequence wins
        places = first[:, None] - size + jnp.arange(size)
        before = jnp.take_along_axis(canvas, jnp.maximum(places, 0), axis=1)
        begun = jnp.all((before == wanted[:size]) & (places >= inputs.prompt_length), axis=1)
        token = jnp.where(begun, wanted[size], token)
    spans = canvas.shape[1] - length + 1
    is_there = jnp.arange(spans) >= inputs.prompt_length
    for offset in range(length):
        is_there &= canvas[:, offset : offset + spans] == wanted[offset]
    progress = jnp.clip((first - inputs.prompt_length + 1) / inputs.answer_length, 0, 1)
    pull = inputs.end_think_boost * progress**inputs.end_think_power
    pull = jnp.where(jnp.any(is_open, axis=1) & ~jnp.any(is_there, axis=1), pull, 0)
    return token, pull.astype(jnp.float32)
