"""Sampling an answer to a prompt: the public entry points.

Shape letters: B rows, P prompt length, N answer length, L canvas length.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from jaxllada.common.answer_rows import lay_out
from jaxllada.common.canvas import Canvas, Snapshot
from jaxllada.common.config.cache import FeatureCache
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.driver import Progress, ShouldStop, run
from jaxllada.common.errors import UserError
from jaxllada.common.policy import Policy
from jaxllada.common.sizing import Sizes
from jaxllada.common.trace import Trace
from jaxllada.models.packed import Packed
from jaxllada.sampling.carry import carried
from jaxllada.sampling.credit import no_credits
from jaxllada.sampling.foresee import foresee
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.loop import State, advance, initial_state
from jaxllada.sampling.smoothing import carried_soft

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
        UserError: shapes or ids that do not fit, a key that is missing, or a mask in the
            prompt. `infill=True` fills these gaps, too. `compat="official-2025"` fills them as the
            release does: they take part in every block and use up its budget, so that masks may be
            left at the end.
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
    for progress in sample_progress(
        model, prompt, config, attention_mask, key, steps_per_piece=steps_per_piece
    ):
        yield progress.trace


def sample_progress(
    model: Any,
    prompt: ArrayLike,
    config: SamplingConfig,
    attention_mask: ArrayLike | None = None,
    key: Array | None = None,
    *,
    steps_per_piece: int | None = None,
    should_stop: ShouldStop | None = None,
    drops_rows: bool = True,
) -> Iterator[Progress]:
    """Like `sample_stepwise`, and tells model calls and canvas lengths too.

    `should_stop` is asked after every block whether a row is finished. Without `steps_per_piece`
    there is a piece after every block where rows may end or lengths change, else one. Rows that are
    over leave the batch; without `drops_rows` they stay in every call, which costs time.
    """
    sizes = Sizes(CANVAS_MULTIPLE, few=True, keeps_rows=not drops_rows)
    answers = lay_out(model.config, prompt, config, attention_mask, sizes)
    keys = _row_keys(key, len(answers.tokens), config)
    return run(JaxDevice(model, config, keys), answers, steps_per_piece, should_stop)


class Placed(NamedTuple):
    """A canvas on the device."""

    inputs: Inputs
    state: State
    policy: Policy
    rows: Int[np.ndarray, " R"]


class JaxDevice:
    """Runs a model on canvases: see `common.driver.Device`."""

    def __init__(self, model: Any, config: SamplingConfig, keys: Array):
        self.model, self.config, self.keys = model, config, keys

    def packed(self, policy: Policy) -> Packed:
        """What kernels read of the model; dLLM-Cache looks into the blocks itself."""
        return Packed.of(self.model, with_blocks=not isinstance(policy.cache, FeatureCache))

    def place(self, canvas: Canvas, placed: Placed | None) -> Placed:
        inputs = Inputs.of(canvas, self.config, self.keys[canvas.rows])
        tokens, policy = jnp.asarray(canvas.tokens), canvas.policy
        if placed is None or canvas.step == 0:
            state = initial_state(self.model, self.packed(policy), inputs, tokens, policy=policy)
            state = state._replace(order=jnp.asarray(canvas.order))
            return Placed(inputs, state, policy, canvas.rows)
        own = np.array([np.argmax(placed.rows == row) for row in canvas.rows])
        soft = carried_soft(placed.state.soft, own, tokens.shape[1])
        if policy.is_guided:
            own = np.concatenate([own, own + len(placed.rows)])
        state = placed.state._replace(
            canvas=tokens,
            order=jnp.asarray(canvas.order),
            confidence=jnp.asarray(canvas.confidence),
            has_ended=jnp.zeros(len(canvas.rows), bool),
            block=jnp.int32(canvas.block),
            call=jnp.int32(0),
            memory=carried(placed.state.memory, own, tokens.shape[1]),
            credits=no_credits(len(canvas.rows), policy),
            soft=soft,
        )
        return Placed(inputs, state, policy, canvas.rows)

    def advance(self, placed: Placed, end_block: int, end_step: int) -> Placed:
        ends = (jnp.int32(end_step), jnp.int32(end_block))
        model = (self.model, self.packed(placed.policy))
        state = advance(*model, placed.inputs, placed.state, *ends, policy=placed.policy)
        return placed._replace(state=state)

    def fetch(self, placed: Placed) -> Snapshot:
        state = placed.state
        parts = (state.canvas, state.order, state.confidence, state.block, state.step)
        *arrays, block, step = jax.device_get(parts)
        return Snapshot(*arrays, block=int(block), step=int(step))

    def foresee(self, placed: Placed) -> tuple[np.ndarray, np.ndarray]:
        model = (self.model, self.packed(placed.policy))
        found = foresee(*model, placed.inputs, placed.state.canvas, placed.policy)
        return jax.device_get(found)


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
