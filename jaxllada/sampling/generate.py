"""Sampling an answer to a prompt: the public entry points.

Shape letters: B rows, P prompt length, N answer length, L canvas length.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from jaxllada.common.canvas import Canvas, lay_out
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace
from jaxllada.common.unmasking import unmasking_plan
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.loop import advance, initial_state

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
    canvas = lay_out(model.config, prompt, config, attention_mask, CANVAS_MULTIPLE)
    inputs = Inputs.of(canvas, config, _row_keys(key, len(canvas.tokens), config))
    return _run(model, inputs, canvas, unmasking_plan(config).total_calls, steps_per_piece)


def _run(
    model: Any, inputs: Inputs, canvas: Canvas, total: int, steps_per_piece: int | None
) -> Iterator[Trace]:
    policy = canvas.policy
    state = initial_state(model, inputs, jnp.asarray(canvas.tokens), policy=policy)
    end = 0
    while end < total:
        end = min(total, end + (steps_per_piece or total))
        state = advance(model, inputs, state, jnp.int32(end), policy=policy)
        yield canvas.trace(*jax.device_get((state.canvas, state.order, state.confidence)))
        if state.is_finished(policy.block_length):
            return


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
