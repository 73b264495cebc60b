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
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.common.trace import NOT_COMMITTED
from jaxllada.models.packed import Packed
from jaxllada.sampling.credit import Credits, no_credits
from jaxllada.sampling.gumbel import slot_keys
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.logits import Head
from jaxllada.sampling.predict import predict
from jaxllada.sampling.reader import Body, Call
from jaxllada.sampling.readers import reader_of
from jaxllada.sampling.select import most_confident
from jaxllada.sampling.smoothing import Soft, Table, no_soft, of_masks, remembered


class State(NamedTuple):
    """The canvas and the record of how it came to be."""

    canvas: Int[Array, "B L"]
    order: Int[Array, "B L"]
    """Step after which a token was there, from 0; `NOT_COMMITTED` elsewhere."""
    confidence: Float[Array, "B L"]
    has_ended: Bool[Array, " B"]
    """Rows that stopped at an end token."""
    step: Int[Array, ""]
    """Model calls so far."""
    block: Int[Array, ""]
    """The active block, the same for all rows; behind the canvas when nothing is left to do."""
    call: Int[Array, ""]
    """Calls of the active block so far."""
    age: Int[Array, ""]
    """Calls that the memory has seen."""
    memory: Any
    """What the reader keeps of earlier calls."""
    credits: Credits | tuple[()]
    """What the positions of the active block predicted in its calls, if that counts."""
    soft: Soft
    """What masks carry of earlier predictions, if they do."""

    def is_finished(self, block_length: int) -> Bool[Array, ""]:
        """Whether no block is left to work on."""
        return self.block * block_length >= self.canvas.shape[1]


@functools.partial(jax.jit, static_argnames="policy", donate_argnames="state")
def advance(
    model: Any,
    packed: Packed,
    inputs: Inputs,
    state: State,
    end_step: Int[Array, ""],
    end_block: Int[Array, ""],
    policy: Policy,
) -> State:
    """Runs until `end_step` calls were made, `end_block` is active, or nothing is left to fill."""
    # Everything a step can share with the others is computed once, before the loop.
    body, head = Body.of(model, packed, inputs, policy), Head.of(model, packed)
    reader = reader_of(policy)
    table = Table.of(model) if policy.is_smooth else None
    slots = jnp.arange(state.canvas.shape[1]) - inputs.prompt_length

    def is_unfinished(state: State) -> Array:
        is_wanted = (state.step < end_step) & (state.block < end_block)
        return is_wanted & ~state.is_finished(policy.block_length)

    def step(state: State) -> State:
        block_start = inputs.prompt_length + state.block * policy.block_length
        block_end = block_start + policy.block_length
        start = jnp.int32(0) if policy.is_wide else block_start
        position = start + jnp.arange(policy.window)
        cut = functools.partial(
            lax.dynamic_slice_in_dim, start_index=start, slice_size=policy.window, axis=1
        )
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=1)

        window = cut(state.canvas)
        is_open = (window == policy.mask_id) & ~state.has_ended[:, None]
        is_mask = is_open
        if policy.is_wide:
            is_open &= position < block_end
        is_read = is_open
        if policy.reads_ahead:
            # A row that waits for others is left as it is: it must not depend on them.
            is_read = is_mask & jnp.any(is_open, axis=1, keepdims=True)
        keys = None
        if policy.is_noisy or policy.draws_order:
            moment = (state.block - inputs.lead) * inputs.calls_per_block + state.call
            origin = inputs.prompt_length + inputs.lead * policy.block_length
            keys = slot_keys(inputs.keys, moment, position - origin)
        call = Call(
            state.canvas, start, block_start, state.call, state.age,
            of_masks(state.soft, state.canvas, policy),
        )  # fmt: skip
        prediction, memory, credits = predict(
            reader, body, head, table, call, state.memory, state.credits, is_read, keys,
            inputs, policy,
        )  # fmt: skip
        count = _transfers(inputs, state.block, state.call, policy)
        last = _is_any(prediction.tokens, policy.end_ids)
        bound = inputs.bounds[state.call] if policy.has_decay else inputs.bound
        bounds = (bound, inputs.low_bound)
        chosen = most_confident(prediction.score, is_open, count, last, policy.extra, *bounds)
        window = jnp.where(chosen, prediction.tokens, window)
        soft = state.soft
        if not (isinstance(soft, tuple) or isinstance(prediction.expected, tuple)):
            new = remembered(cut(soft), prediction.expected, is_read, state.call, inputs)
            soft = put(soft, new)
        state = state._replace(
            canvas=put(state.canvas, window),
            order=put(state.order, jnp.where(chosen, state.step, cut(state.order))),
            confidence=put(
                state.confidence, jnp.where(chosen, prediction.confidence, cut(state.confidence))
            ),
            step=state.step + 1,
            call=state.call + 1,
            age=state.age + 1,
            memory=memory,
            credits=credits,
            soft=soft,
        )
        is_left = jnp.any(is_open & (window == policy.mask_id), axis=1)
        is_left &= _transfers(inputs, state.block, state.call, policy) > 0
        is_done = ~jnp.any(is_left)
        if policy.stop_at_eos:
            in_answer = (slots >= 0) & (slots < block_end - inputs.prompt_length)
            ended = jnp.any((state.canvas == policy.eos_id) & in_answer, axis=1)
            state = _end_rows(state, ended & is_done, slots, policy)
        following = _first_block(state, slots, block_end - inputs.prompt_length, policy)
        return state._replace(
            block=jnp.where(is_done, following, state.block),
            call=jnp.where(is_done, 0, state.call),
        )

    return lax.while_loop(is_unfinished, step, state)


def _transfers(inputs: Inputs, block: Array, call: Array, policy: Policy) -> Int[Array, " B"]:
    """Tokens that a call of a block commits in each row."""
    column = block * policy.block_length + call
    counts = lax.dynamic_slice_in_dim(inputs.transfers, column, 1, axis=1)[:, 0]
    return jnp.where(call < policy.block_length, counts, 0)


def _first_block(state: State, slots: Array, first: Array | int, policy: Policy) -> Int[Array, ""]:
    """The first block with masks from slot `first` on; one behind the canvas if there is none."""
    length = state.canvas.shape[1]
    is_open = (state.canvas == policy.mask_id) & ~state.has_ended[:, None] & (slots >= first)
    slot = jnp.min(jnp.where(jnp.any(is_open, axis=0), slots, length + policy.block_length))
    return slot // policy.block_length


def _end_rows(state: State, ended: Bool[Array, " B"], slots: Array, policy: Policy) -> State:
    """Ends rows: masks of the answer become end tokens that nobody predicted."""
    where = ended[:, None] & (slots >= 0) & (state.canvas == policy.mask_id)
    return state._replace(
        canvas=jnp.where(where, policy.eos_id, state.canvas),
        order=jnp.where(where, state.step - 1, state.order),
        has_ended=state.has_ended | ended,
    )


def _is_any(tokens: Array, ids: tuple[int, ...]) -> Array | None:
    return jnp.isin(tokens, jnp.array(ids)) if ids else None


@functools.partial(jax.jit, static_argnames="policy")
def initial_state(
    model: Any, packed: Packed, inputs: Inputs, canvas: Int[Array, "B L"], policy: Policy
) -> State:
    """The state before the first step; its memory is empty."""
    zero = jnp.int32(0)
    state = State(
        canvas=canvas,
        order=jnp.full(canvas.shape, NOT_COMMITTED, jnp.int32),
        confidence=jnp.zeros(canvas.shape, jnp.float32),
        has_ended=jnp.zeros(canvas.shape[0], bool),
        step=zero,
        block=zero,
        call=zero,
        age=zero,
        memory=reader_of(policy).start(Body.of(model, packed, inputs, policy), policy),
        credits=no_credits(len(canvas), policy),
        soft=no_soft(model, canvas, policy),
    )
    slots = jnp.arange(canvas.shape[1]) - inputs.prompt_length
    return state._replace(block=_first_block(state, slots, 0, policy))
