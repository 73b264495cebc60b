"""The sampling loop, compiled as a whole: prompts and step counts are data, so nothing recompiles.

Semi-autoregressive low-confidence remasking (LLaDA, arXiv:2502.09992v3, section 2.4 and Algorithm
5). A run is a state that `advance` carries to a given step; running it in pieces gives the same
tokens as running it in one go.

Shape letters: B rows, L canvas length.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.common.trace import NOT_COMMITTED
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.logits import Head
from jaxllada.sampling.predict import predict
from jaxllada.sampling.select import most_confident, transfer_count


class State(NamedTuple):
    """The canvas and the record of how it came to be."""

    canvas: Int[Array, "B L"]
    order: Int[Array, "B L"]
    """Step after which a token was there, from 0; `NOT_COMMITTED` elsewhere."""
    confidence: Float[Array, "B L"]
    num_masks: Int[Array, " B"]
    """Masks of the active block when it was entered."""
    step: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="policy", donate_argnames="state")
def advance(
    model: Any, inputs: Inputs, state: State, end_step: Int[Array, ""], policy: Policy
) -> State:
    """Runs steps until `end_step`, or until nothing is left to fill."""
    # Everything a step can share with the others is computed once, before the loop.
    passes = 2 if policy.is_guided else 1
    turn = model.rotation(jnp.tile(inputs.positions, (passes, 1)))
    blocks = model.unstacked() if jax.default_backend() == "cpu" else None
    hidden = functools.partial(model.hidden, turn=turn, blocks=blocks)
    slots = jnp.arange(state.canvas.shape[1]) - inputs.prompt_length
    head = Head.of(model)

    def is_unfinished(state: State) -> Array:
        fillable = (state.canvas == policy.mask_id) & (policy.fills_prompt | (slots >= 0))
        return (state.step < end_step) & jnp.any(fillable)

    def step(state: State) -> State:
        block, call = jnp.divmod(state.step, inputs.calls_per_block)
        block_start = inputs.prompt_length + block * policy.block_length
        block_end = block_start + policy.block_length
        start = jnp.int32(0) if policy.fills_prompt else block_start
        position = start + jnp.arange(policy.window)
        cut = functools.partial(
            lax.dynamic_slice_in_dim, start_index=start, slice_size=policy.window, axis=1
        )
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=1)

        window = cut(state.canvas)
        is_open = (window == policy.mask_id) & (position < block_end)
        in_block = jnp.sum(is_open & (position >= block_start), axis=1)
        num_masks = jnp.where(call == 0, in_block, state.num_masks)
        keys = None
        if policy.is_noisy or policy.random_order:
            keys = _slot_keys(inputs.keys, state.step, position - inputs.prompt_length)
        prediction = predict(hidden, head, state.canvas, is_open, start, keys, inputs, policy)
        chosen = most_confident(
            prediction.confidence,
            is_open,
            transfer_count(num_masks, inputs.steps_per_block, call),
            _is_any(prediction.tokens, policy.end_ids),
        )
        state = State(
            put(state.canvas, jnp.where(chosen, prediction.tokens, window)),
            put(state.order, jnp.where(chosen, state.step, cut(state.order))),
            put(state.confidence, jnp.where(chosen, prediction.confidence, cut(state.confidence))),
            num_masks,
            state.step + 1,
        )
        if policy.stop_at_eos:
            in_answer = (slots >= 0) & (slots < block_end - inputs.prompt_length)
            ended = jnp.any((state.canvas == policy.eos_id) & in_answer, axis=1, keepdims=True)
            is_last = call == inputs.calls_per_block - 1
            state = _fill(state, ended & is_last & (slots >= 0), policy)
        return state

    return lax.while_loop(is_unfinished, step, state)


def _fill(state: State, where: Array, policy: Policy) -> State:
    """Ends rows: masks at `where` become end tokens that nobody predicted."""
    where &= state.canvas == policy.mask_id
    return state._replace(
        canvas=jnp.where(where, policy.eos_id, state.canvas),
        order=jnp.where(where, state.step - 1, state.order),
    )


def _slot_keys(keys: Array, step: Array, slots: Int[Array, " S"]) -> Array:
    """Keys [B, S] that depend on the row's key, the step and the place in the answer only."""
    fold = jax.random.fold_in
    of_row = jax.vmap(lambda key: jax.vmap(lambda slot: fold(fold(key, step), slot))(slots))
    return of_row(keys)


def _is_any(tokens: Array, ids: tuple[int, ...]) -> Array | None:
    return jnp.isin(tokens, jnp.array(ids)) if ids else None


def initial_state(canvas: Array) -> State:
    """The state before the first step."""
    return State(
        canvas=jnp.asarray(canvas, jnp.int32),
        order=jnp.full(canvas.shape, NOT_COMMITTED, jnp.int32),
        confidence=jnp.zeros(canvas.shape, jnp.float32),
        num_masks=jnp.zeros(canvas.shape[0], jnp.int32),
        step=jnp.int32(0),
    )
