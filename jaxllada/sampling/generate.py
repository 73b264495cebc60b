"""Sampling an answer to a prompt: the public entry points.

Shape letters: B rows, P prompt length, N answer length, L canvas length.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from numpy.typing import ArrayLike

from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace
from jaxllada.common.unmasking import unmasking_plan
from jaxllada.sampling.loop import State, advance, initial_state
from jaxllada.sampling.policy import Inputs, Policy

CANVAS_MULTIPLE = 64
"""Canvas lengths are rounded up to this, so that few of them are ever compiled."""


def sample(
    model: Any,
    prompt: ArrayLike,
    config: SamplingConfig,
    attention_mask: ArrayLike | None = None,
    key: Array | None = None,
) -> Int[Array, "B L"]:
    """Appends `gen_length` masks to the prompt and fills them in `steps` model calls.

    Args:
        model: a `MaskPredictor`; special ids come from its config.
        prompt: token ids [B, P].
        config: the sampler's options.
        attention_mask: [B, P], 1 for prompt tokens, 0 for padding on the left of shorter prompts.
            Rows are placed as if they were alone: the result does not depend on batch mates.
        key: a JAX random key, needed when something is drawn. Row i uses fold_in(key, i); an
            array of B keys gives each row its own.

    Returns:
        int32 prompt and answer [B, P + N], without masks.

    Raises:
        UserError: shapes or ids that do not fit, a key that is missing, or a mask in the prompt
            (`compat="official-2025"` fills prompt masks as the release does: they take part in
            every block and use up its budget, so that masks may be left at the end).
    """
    trace = sample_trace(model, prompt, config, attention_mask, key)
    return jnp.asarray(np.concatenate([trace.prompt, trace.tokens], axis=1))


def sample_trace(
    model: Any,
    prompt: ArrayLike,
    config: SamplingConfig,
    attention_mask: ArrayLike | None = None,
    key: Array | None = None,
) -> Trace:
    """Like `sample`, and returns the record of every step; `num_steps` model calls were made."""
    pieces = sample_stepwise(model, prompt, config, attention_mask, key, steps_per_piece=None)
    return list(pieces)[-1]


def sample_stepwise(
    model: Any,
    prompt: ArrayLike,
    config: SamplingConfig,
    attention_mask: ArrayLike | None = None,
    key: Array | None = None,
    *,
    steps_per_piece: int | None = 1,
) -> Iterator[Trace]:
    """Like `sample_trace`, and yields what there is after every `steps_per_piece` steps.

    The same compiled program runs whatever the size of a piece; None is one piece.
    """
    prompt, visible = _checked_prompt(model, prompt, config, attention_mask)
    keys = _row_keys(key, len(prompt), config)
    plan = unmasking_plan(config)
    mask_id = model.config.mask_id
    length = prompt.shape[1] + config.gen_length
    canvas = np.full((len(prompt), _rounded_up(length)), model.config.eos_token_id, np.int32)
    canvas[:, : prompt.shape[1]] = prompt
    canvas[:, prompt.shape[1] : length] = mask_id
    fills_prompt = config.compat is not None and bool((prompt == mask_id).any())
    window = canvas.shape[1] if fills_prompt else config.block_length
    policy = Policy.of(config, model.config, window)
    visible = _extended(visible, config.gen_length, canvas.shape[1])
    inputs = Inputs(
        visible=jnp.asarray(visible),
        positions=jnp.asarray(_positions(visible)),
        known=jnp.asarray(canvas != mask_id),
        keys=keys,
        prompt_length=jnp.int32(prompt.shape[1]),
        steps_per_block=jnp.int32(plan.steps_per_block),
        calls_per_block=jnp.int32(plan.calls_per_block),
        temperature=jnp.float32(config.temperature),
        cfg_scale=jnp.float32(config.cfg_scale),
    )
    return _run(model, inputs, canvas, policy, config, plan.total_calls, steps_per_piece)


def _run(
    model: Any,
    inputs: Inputs,
    canvas: Int[np.ndarray, "B L"],
    policy: Policy,
    config: SamplingConfig,
    total: int,
    steps_per_piece: int | None,
) -> Iterator[Trace]:
    state = initial_state(jnp.asarray(canvas))
    end = 0
    while end < total:
        end = min(total, end + (steps_per_piece or total))
        state = advance(model, inputs, state, jnp.int32(end), policy=policy)
        trace = _trace(state, int(inputs.prompt_length), config.gen_length, policy.mask_id)
        yield trace
        is_filled = (trace.tokens != policy.mask_id).all()
        if is_filled and not policy.fills_prompt:  # every row has ended
            return


def _trace(state: State, prompt_length: int, gen_length: int, mask_id: int) -> Trace:
    canvas, order, confidence = jax.device_get((state.canvas, state.order, state.confidence))
    answer = slice(prompt_length, prompt_length + gen_length)
    return Trace(
        prompt=canvas[:, :prompt_length],
        tokens=canvas[:, answer],
        order=order[:, answer].astype(np.int16),
        confidence=confidence[:, answer],
        mask_token_id=mask_id,
    )


def _checked_prompt(
    model: Any, prompt: Any, config: SamplingConfig, attention_mask: Any
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    prompt = np.asarray(prompt)
    if prompt.ndim != 2 or not len(prompt):
        raise UserError(f"prompt has shape {prompt.shape}; expected [rows, tokens]")
    if not np.issubdtype(prompt.dtype, np.integer) and prompt.size:
        raise UserError(f"prompt has type {prompt.dtype}; expected integer token ids")
    visible = np.ones(prompt.shape, bool)
    if attention_mask is not None:
        visible = np.asarray(attention_mask) != 0
        if visible.shape != prompt.shape:
            raise UserError(
                f"attention_mask has shape {visible.shape}; expected {prompt.shape} as the prompt"
            )
    wrong = np.argwhere((prompt < 0) | (prompt >= model.config.rows))
    if len(wrong):
        row, position = wrong[0]
        raise UserError(
            f"prompt row {row} holds id {prompt[row, position]} at position {position},"
            f" outside the {model.config.rows} rows of the embedding"
        )
    masks = np.argwhere((prompt == model.config.mask_id) & visible)
    if len(masks) and config.compat is None:
        row, position = masks[0]
        raise UserError(
            f"prompt row {row} holds the mask id {model.config.mask_id} at position {position};"
            ' only compat="official-2025" fills masks inside a prompt'
        )
    return prompt.astype(np.int32), visible


def _row_keys(key: Any, rows: int, config: SamplingConfig) -> Array:
    if key is None:
        if config.needs_key:
            raise UserError(
                f"temperature={config.temperature} with remasking={config.remasking!r} draws"
                " random numbers: pass key=jax.random.key(seed)"
            )
        key = jax.random.key(0)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) != "threefry2x32":
        # The other kinds hold two threefry keys side by side.
        data = jax.random.key_data(key)[..., :2]
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
    if key.ndim == 0:
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
    if key.shape != (rows,):
        raise UserError(f"key has shape {key.shape}; expected one key, or one per row ({rows},)")
    return key


def _rounded_up(length: int) -> int:
    return -(-length // CANVAS_MULTIPLE) * CANVAS_MULTIPLE


def _extended(
    visible: Bool[np.ndarray, "B P"], gen_length: int, length: int
) -> Bool[np.ndarray, "B L"]:
    """The answer is visible, the padding on its right is not."""
    extended = np.zeros((len(visible), length), bool)
    extended[:, : visible.shape[1]] = visible
    extended[:, visible.shape[1] : visible.shape[1] + gen_length] = True
    return extended


def _positions(visible: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B L"]:
    """Rotary positions that start at each row's first visible token, as if it were alone.

    Attention depends on distances only, so this equals the release, which counts the padding, up
    to rounding; and here the rounding is that of the row's own run. Holes keep their places.
    """
    places = np.arange(visible.shape[1]) - visible.argmax(axis=1)[:, None]
    return np.maximum(places, 0).astype(np.int32)
