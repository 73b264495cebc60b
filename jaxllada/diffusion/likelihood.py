"""Conditional log-likelihood of answers (LLaDA, arXiv:2502.09992v3, Eq. 6).

What is drawn, shared and averaged is decided in `common/scoring.py`; here a model reads canvases.

Shape letters: U canvases, R views of them, L padded length, S padded answer, D model width.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import Round, checked_tokens
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.scoring import mean_over_rounds, score_questions
from jaxllada.common.views import Batch, Reader, Shapes
from jaxllada.diffusion.token_nats import TokenNats, token_nats

SHAPES = Shapes(length=64, answer=16, is_padded=True)
"""Lengths are rounded up to these, so that few of them are ever compiled."""


def log_likelihood(
    model: Any,
    prompt: ArrayLike,
    answer: ArrayLike,
    config: LikelihoodConfig | None = None,
    key: Array | None = None,
) -> float:
    """Estimates the bound on log p(answer | prompt), in nats; 0 is certainty.

    At most `mc_num / batch_size` calls of the model, each on at most `batch_size` masked copies
    (twice as many with guidance); equal copies are computed once. The head runs on hidden answer
    positions only. `score` takes many answers at once and tells the standard error.

    Args:
        model: a `MaskPredictor`.
        prompt: token ids [P], which may be empty.
        answer: token ids, at least one.
        config: number of masks, batch size, guidance, seed.
        key: a JAX random key for the masks; without it they follow from `config.seed` and the
            length of the answer, the same on every backend.

    Raises:
        UserError: ids outside the vocabulary, or more tokens than the model has positions.
    """
    config = config or LikelihoodConfig()
    seed = config.seed if key is None else _seed_of(key)
    prompt, answer = checked_tokens(prompt, answer, model.config)
    question = Question(prompt.tolist(), (answer.tolist(),))
    return score(model, [question], config, seed=seed)[0].options[0].value


def score(
    model: Any,
    questions: Sequence[Question],
    config: LikelihoodConfig | None = None,
    *,
    first: int = 0,
    seed: int | None = None,
) -> list[QuestionScores]:
    """Scores every option of every question, in batches of similar length.

    Question i draws its masks from (seed, first + i), so cutting a list changes nothing; the
    options of one question share theirs. `seed` replaces that of the config. Raises `UserError`
    for tokens that the model cannot be asked.
    """
    config = config or LikelihoodConfig()
    readers = {reuse: make_reader(model, config, reuse) for reuse in (False, True)}
    return score_questions(questions, config, model.config, readers, first=first, seed=seed)


def mean_log_likelihood(
    model: Any,
    prompt: Int[np.ndarray, " P"],
    answer: Int[np.ndarray, " N"],
    rounds: Iterable[Round],
    cfg_scale: float = 0.0,
) -> float:
    """Averages Eq. 6 over given masks: the log-probability of hidden tokens times N / hidden."""
    reader = make_reader(model, LikelihoodConfig(cfg_scale=cfg_scale))
    return mean_over_rounds(reader, prompt, answer, rounds, cfg_scale > 0)


def make_reader(model: Any, config: LikelihoodConfig, reuses_prompt: bool = False) -> Reader:
    """Returns what reads masked copies with this model."""
    if model.config.is_causal:
        raise UserError(
            "this model is autoregressive and its likelihood exact: use CausalEngine.log_likelihood"
        )

    def read(batch: Batch) -> TokenNats:
        arrays = (jnp.asarray(x) for x in batch)
        return read_batch(
            model,
            Batch(*arrays),
            jnp.float32(config.cfg_scale),
            is_guided=config.cfg_scale > 0,
            reuses_prompt=reuses_prompt,
            block_length=config.block_length,
        )

    return Reader(read, model.config, SHAPES, config.rows)


@functools.partial(jax.jit, static_argnames=("is_guided", "reuses_prompt", "block_length"))
def read_batch(
    model: Any,
    batch: Batch,
    cfg_scale: Float[Array, ""],
    *,
    is_guided: bool,
    reuses_prompt: bool,
    block_length: int | None,
) -> TokenNats:
    """Returns nats [R, S] of the hidden tokens of every view."""
    place = jnp.arange(batch.canvas.shape[1])
    # Positions count from a row's first token: padding on the left does not shift them.
    positions = jnp.maximum(place - batch.first[:, None], 0)
    visible = (place >= batch.first[:, None]) & (place < batch.last[:, None])
    states = (_reread if reuses_prompt else _read)(model, batch, positions, visible, block_length)
    given = states[batch.given]
    if is_guided:
        # Logits are linear in these activations: guiding here is guiding the logits (Eq. 16).
        given, unconditional = given.astype(jnp.float32), states[batch.without].astype(jnp.float32)
        given = unconditional + (cfg_scale + 1) * (given - unconditional)
    found = token_nats(
        (given * jnp.asarray(model.logit_scale, given.dtype)).reshape(-1, given.shape[-1]),
        model.head_weight.astype(given.dtype),
        batch.targets.reshape(-1),
        batch.asked.reshape(-1),
        head_bias=None if model.head_bias is None else model.head_bias * model.logit_scale,
    )
    return TokenNats(*(values.reshape(batch.targets.shape) for values in found))


def _read(
    model: Any, batch: Batch, positions: Array, visible: Array, block_length: int | None
) -> Float[Array, "U S D"]:
    """The answers' rows, by the whole model on whole canvases."""
    window = (batch.start, batch.targets.shape[1])
    options = {}
    if block_length:
        place = jnp.arange(visible.shape[1]) - batch.start
        options["attention_bias"] = _no_later_block(place, block_length)
    turn = model.rotation(positions)
    return model.hidden(batch.canvas, visible, turn=turn, window=window, **options)


def _reread(
    model: Any, batch: Batch, positions: Array, visible: Array, block_length: int | None
) -> Float[Array, "U S D"]:
    """The answers' rows, beside keys and values of prompts before an answer that is all hidden.

    Exact under block-causal attention, where prompts never see answers.
    """
    length, size = batch.canvas.shape[1], batch.targets.shape[1]
    place = jnp.arange(length) - batch.start
    seen = visible[:, None, None, :]
    if block_length:
        seen = seen & _no_later_block(place, block_length)
    seen = jnp.broadcast_to(seen, (len(visible), 1, length, length))
    rows = batch.grounds
    is_answer = (place >= 0) & (place < batch.sizes[rows][:, None])
    hidden = jnp.where(is_answer, model.config.mask_id, batch.canvas[rows])
    _, kept = model.reread(
        hidden, model.memory(len(rows), length), model.region(0, length), seen[rows],
        turn=model.rotation(positions[rows]),
    )  # fmt: skip
    own = jax.tree.map(lambda x: jnp.take(x, batch.ground, axis=1), kept)

    def part(x: Array, axis: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, batch.start, size, axis)

    states, _ = model.reread(
        part(batch.canvas, 1), own, model.region(batch.start, size), part(seen, 2),
        turn=model.rotation(part(positions, 1)),
    )  # fmt: skip
    return states


def _no_later_block(place: Int[Array, " L"], block_length: int) -> Bool[Array, "1 1 L L"]:
    """Which keys each query sees; blocks count from the answer's first token."""
    block = place // block_length
    return (block[None, :] <= block[:, None])[None, None]


def _seed_of(key: Array) -> int:
    high, low = np.asarray(jax.random.bits(key, (2,), jnp.uint32)).tolist()
    return high << 32 | low
