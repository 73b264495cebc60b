"""Answering left to right with kept keys and values: the sampler of the autoregressive twin.

The prompt is read once; then every call reads one token beside the keys and values of all before
it. The loop is compiled as a whole, once for every length of padded prompts and answers.

Shape letters: B rows, P prompt length, N answer length, K = P + N positions, D model width.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.autoregressive import Prompts, check_options, end_ids, padded, record
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.trace import Trace
from jaxllada.models.block import Block
from jaxllada.models.causal_lm import CausalLM
from jaxllada.models.kept import Memory, Region
from jaxllada.sampling.gumbel import gumbel

MULTIPLE = 64
"""Prompts are padded to a multiple of this, so that few lengths are ever compiled."""


class Options(NamedTuple):
    """What the compiled loop depends on besides shapes."""

    is_noisy: bool
    never_eos: bool
    eos_id: int
    end_ids: tuple[int, ...]
    """Ids that end a row; empty: nothing does."""


class State(NamedTuple):
    """A run under way: what has been written, and what the next token is predicted from."""

    step: Int[Array, ""]
    tokens: Int[Array, "B N"]
    confidence: Float[Array, "B N"]
    lengths: Int[Array, " B"]
    hidden: Float[Array, "B D"]
    memory: Memory


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    keys: Array,
    *,
    steps_per_piece: int | None = None,
) -> Iterator[Trace]:
    """Answers prompts of any lengths; yields the record after every `steps_per_piece` steps.

    Each row is what it would be alone. A row ends with the end token (or the end of the turn) if
    `stop_at_eos` is set. `keys` holds a random key per row. `steps_per_piece` None is one piece.

    Raises:
        UserError: an option that only diffusion has.
    """
    check_options(config)
    laid = padded(prompts, model.config, MULTIPLE)
    eos = model.config.eos_token_id
    ends = end_ids(config, model.config)
    options = Options(config.temperature > 0, config.logits_eos_inf, eos, ends)
    room = -(-config.gen_length // MULTIPLE) * MULTIPLE
    return _pieces(model, laid, config, options, room, keys, steps_per_piece or config.gen_length)


def _pieces(
    model: CausalLM,
    laid: Prompts,
    config: SamplingConfig,
    options: Options,
    room: int,
    keys: Array,
    piece: int,
) -> Iterator[Trace]:
    blocks = _unstacked(model)
    visible = jnp.asarray(laid.visible)
    state = _read_prompt(model, blocks, jnp.asarray(laid.tokens), visible, room=room)
    total, temperature = config.gen_length, jnp.float32(config.temperature)
    for end in range(piece, total + piece, piece):
        limit = jnp.int32(min(end, total))
        state = _advance(
            model,
            blocks,
            visible,
            keys,
            state,
            limit,
            jnp.int32(total),
            temperature,
            options=options,
        )
        step, tokens, confidence, lengths = jax.device_get(state[:4])
        lengths = np.minimum(lengths, total)
        answer = tokens[:, :total], confidence[:, :total]
        yield record(laid, *answer, lengths, int(step), options.eos_id)
        if (lengths <= step).all():
            return


@jax.jit
def _unstacked(model: CausalLM) -> tuple[Block, ...]:
    return model.unstacked()


@functools.partial(jax.jit, static_argnames="room")
def _read_prompt(
    model: CausalLM,
    blocks: tuple[Block, ...],
    prompt: Int[Array, "B P"],
    visible: Bool[Array, "B P"],
    *,
    room: int,
) -> State:
    """Reads the prompts and makes room for answers."""
    batch, length = prompt.shape
    memory = model.memory(batch, length + room, blocks)
    causal = jnp.tril(jnp.ones((length, length + room), bool))
    keys = jnp.pad(visible, ((0, 0), (0, room)))
    turn = model.rotation(_positions(visible))
    hidden, memory = model.reread(
        prompt,
        memory,
        Region(0, length),
        keys[:, None, None] & causal,
        turn=turn,
        window=(length - 1, 1),
        blocks=blocks,
    )
    return State(
        step=jnp.int32(0),
        tokens=jnp.zeros((batch, room), jnp.int32),
        confidence=jnp.zeros((batch, room)),
        lengths=jnp.full(batch, room, jnp.int32),
        hidden=hidden[:, 0],
        memory=memory,
    )


@functools.partial(jax.jit, static_argnames="options", donate_argnames="state")
def _advance(
    model: CausalLM,
    blocks: tuple[Block, ...],
    visible: Bool[Array, "B P"],
    keys: Array,
    state: State,
    end: Int[Array, ""],
    total: Int[Array, ""],
    temperature: Float[Array, ""],
    *,
    options: Options,
) -> State:
    """Writes tokens up to step `end` of `total`, or until all rows have ended."""
    length, room = visible.shape[1], state.tokens.shape[1]
    counted = visible.sum(axis=1)

    def is_going(state: State) -> Array:
        return (state.step < end) & jnp.any(state.lengths > state.step)

    def write(state: State) -> State:
        step = state.step
        token, chance = _choose(model, state.hidden, keys, step, temperature, options)
        has_ended = state.lengths <= step
        token = jnp.where(has_ended, options.eos_id, token)
        chance = jnp.where(has_ended, 0.0, chance)
        ends = jnp.isin(token, jnp.asarray(options.end_ids, jnp.int32)) & ~has_ended
        lengths = jnp.where(ends, step + 1, state.lengths)

        def read() -> tuple[Array, Memory]:
            place = length + step
            sees = jnp.pad(visible, ((0, 0), (0, room)), constant_values=True)
            sees &= jnp.arange(length + room) <= place
            hidden, memory = model.reread(
                token[:, None],
                state.memory,
                Region(place, 1),
                sees[:, None, None],
                turn=model.rotation((counted + step)[:, None]),
                blocks=blocks,
            )
            return hidden[:, 0], memory

        going = jnp.any(lengths > step + 1) & (step + 1 < total)  # the last one is not read
        hidden, memory = jax.lax.cond(going, read, lambda: (state.hidden, state.memory))
        tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, step))
        confidence = jax.lax.dynamic_update_slice(state.confidence, chance[:, None], (0, step))
        return State(step + 1, tokens, confidence, lengths, hidden, memory)

    return jax.lax.while_loop(is_going, write, state)


def _choose(
    model: CausalLM,
    hidden: Float[Array, "B D"],
    keys: Array,
    step: Int[Array, ""],
    temperature: Float[Array, ""],
    options: Options,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Returns a token for each row and the model's probability of it."""
    logits = model.head(hidden)
    if options.never_eos:
        logits = logits.at[:, options.eos_id].set(-jnp.inf)
    noisy = logits
    if options.is_noisy:
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        noise = jax.vmap(lambda key: gumbel(key, logits.shape[1]))(step_keys)
        noisy = logits + temperature * noise
    token = jnp.argmax(noisy, axis=1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return token, jnp.exp(chosen - jax.nn.logsumexp(logits, axis=1))


def _positions(visible: Bool[Array, "B P"]) -> Int[Array, "B P"]:
    """Rotary positions that start at each row's first token."""
    return jnp.maximum(jnp.cumsum(visible, axis=1) - 1, 0)
