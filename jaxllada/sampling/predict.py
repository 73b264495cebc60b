"""One model call of the sampler: the predicted token and its confidence for every open position.

The head is most of the work of a small model, so it runs on the open positions only, gathered into
the smallest of a few static sizes.

Shape letters: B rows, L canvas length, S positions of the window, R gathered positions,
D model width, V vocabulary rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.sampling.gumbel import gumbel


@dataclass(frozen=True)
class Policy:
    """What the compiled sampler depends on besides shapes; all else is data."""

    mask_id: int
    eos_id: int
    block_length: int
    window: int
    """Positions looked at per step: the active block, or the whole canvas when the prompt holds
    masks, which the release fills along with the block."""
    is_noisy: bool
    is_guided: bool
    random_order: bool
    never_eos: bool
    end_ids: tuple[int, ...]
    """Ids committed after all others of a block."""
    zeroed_ids: tuple[int, ...]
    """Ids taken out of the distribution that confidences come from."""
    stop_at_eos: bool

    @classmethod
    def of(cls, config: SamplingConfig, model: ModelConfig, window: int) -> "Policy":
        ends = ()
        if config.confidence_eos_eot_inf:
            ends = (model.eos_token_id,)
            ends += () if config.eot_token_id is None else (config.eot_token_id,)
        zeroed = ()
        if config.compat == "official-2025":
            # The release wrote minus infinity to the end-of-turn logit, and to the end-of-sequence
            # logit of a tensor that is the same one only while no noise is added.
            zeroed = ends[1:] if config.temperature > 0 else ends
            ends = ()
        return cls(
            mask_id=model.mask_id,
            eos_id=model.eos_token_id,
            block_length=config.block_length,
            window=window,
            is_noisy=config.temperature > 0,
            is_guided=config.cfg_scale > 0,
            random_order=config.remasking == "random",
            never_eos=config.logits_eos_inf,
            end_ids=ends,
            zeroed_ids=zeroed,
            stop_at_eos=config.stop_at_eos,
        )


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
    prompt_length: Int[Array, ""]
    steps_per_block: Int[Array, ""]
    calls_per_block: Int[Array, ""]
    temperature: Float[Array, ""]
    cfg_scale: Float[Array, ""]


class Prediction(NamedTuple):
    """Tokens and confidences of the window; positions that are not open hold anything."""

    tokens: Int[Array, "B S"]
    confidence: Float[Array, "B S"]


def predict(
    hidden: Callable[..., Float[Array, "B S D"]],
    head: Callable[[Float[Array, "N D"]], Float[Array, "N V"]],
    canvas: Int[Array, "B L"],
    is_open: Bool[Array, "B S"],
    start: Int[Array, ""],
    slot_keys: Array,
    inputs: Inputs,
    policy: Policy,
) -> Prediction:
    """Calls the model once and reads the open positions of the window that starts at `start`."""
    visible, positions = inputs.visible, inputs.positions
    if policy.is_guided:
        without_prompt = jnp.where(inputs.known, policy.mask_id, canvas)
        canvas = jnp.concatenate([canvas, without_prompt])
        visible, positions = jnp.tile(visible, (2, 1)), jnp.tile(positions, (2, 1))
    states = hidden(canvas, visible, position_ids=positions, window=(start, policy.window))
    sizes = row_buckets(policy.window)
    most_open = jnp.max(jnp.sum(is_open, axis=1))
    smallest = jnp.sum(jnp.array(sizes) < most_open)

    def read(size: int, states: Array, is_open: Array, slot_keys: Array) -> Prediction:
        index = jnp.argsort(~is_open, axis=1, stable=True)[:, :size]
        copies = 2 if policy.is_guided else 1
        rows = jnp.take_along_axis(states, jnp.tile(index, (copies, 1))[..., None], axis=1)
        logits = head(rows.reshape(-1, rows.shape[-1]))
        if policy.is_guided:
            given, without = jnp.split(logits, 2)
            logits = without + (inputs.cfg_scale + 1) * (given - without)
        keys = jnp.take_along_axis(slot_keys, index, axis=1).reshape(-1)
        tokens, confidence = read_logits(logits, keys, inputs.temperature, policy)
        row = jnp.arange(index.shape[0])[:, None]
        blank = Prediction(jnp.zeros(is_open.shape, jnp.int32), jnp.zeros(is_open.shape))
        return Prediction(
            blank.tokens.at[row, index].set(tokens.reshape(index.shape)),
            blank.confidence.at[row, index].set(confidence.reshape(index.shape)),
        )

    branches = [_bind(read, size) for size in sizes]
    prediction = lax.switch(smallest, branches, states, is_open, slot_keys)
    if policy.random_order:
        draw = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1))))
        prediction = prediction._replace(confidence=draw(slot_keys))
    return prediction


def read_logits(
    logits: Float[Array, "N V"], keys: Array, temperature: Float[Array, ""], policy: Policy
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns the predicted token of each row and its probability, without the noise, in float32."""
    column = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    if policy.never_eos:
        logits = jnp.where(column == policy.eos_id, -jnp.inf, logits)
    scores = logits
    if policy.is_noisy:
        draw = jax.vmap(lambda key: gumbel(jax.random.fold_in(key, 0), logits.shape[1]))
        scores = logits + temperature * draw(keys)
    tokens = first_argmax(scores)
    for dropped in policy.zeroed_ids:
        logits = jnp.where(column == dropped, -jnp.inf, logits)
    peak = jnp.max(logits, axis=1, keepdims=True)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)
    total = jnp.sum(jnp.exp(logits - peak), axis=1)
    return tokens, jnp.exp(chosen - peak)[:, 0] / total


def first_argmax(scores: Float[Array, "N V"]) -> Int[Array, " N"]:
    """Returns the lowest index of each row's maximum.

    In two levels: XLA's own argmax carries an index through the whole row, which no CPU vectorises.
    """
    width = math.gcd(scores.shape[1], 128)
    if width < 16:
        return jnp.argmax(scores, axis=1).astype(jnp.int32)
    chunks = scores.reshape(scores.shape[0], -1, width)
    best = jnp.argmax(jnp.max(chunks, axis=2), axis=1)
    inside = jnp.take_along_axis(chunks, best[:, None, None], axis=1)[:, 0]
    return (best * width + jnp.argmax(inside, axis=1)).astype(jnp.int32)


def row_buckets(window: int) -> tuple[int, ...]:
    """Sizes the open positions are gathered into, ascending; the last holds the whole window."""
    sizes = {window}
    while window > 4:
        window = -(-window // 2)
        sizes.add(window)
    return tuple(sorted(sizes))


def _bind(read: Callable[..., Prediction], size: int) -> Callable[..., Prediction]:
    return lambda *operands: read(size, *operands)
