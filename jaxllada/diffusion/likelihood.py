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
from jaxllada.common.shared_prompts import SharedBatch
from jaxllada.common.view_reader import Reader
from jaxllada.common.views import Batch, Shapes
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

    # Models of other makes have no weights for kernels.
    packed = model.packed() if hasattr(model, "packed") else None

    def read(batch: Batch | SharedBatch) -> TokenNats:
        return read_batch(
            model,
            packed,
            jax.tree.map(jnp.asarray, batch),
            jnp.float32(config.cfg_scale),
            is_guided=config.cfg_scale > 0,
            block_length=config.block_length,
        )

    return Reader(read, model.config, SHAPES, config.rows, reuses_prompt)


@functools.partial(jax.jit, static_argnames=("is_guided", "block_length"))
def read_batch(
    model: Any,
    packed: Any,
    batch: Batch | SharedBatch,
    cfg_scale: Float[Array, ""],
    *,
    is_guided: bool,
    block_length: int | None,
) -> TokenNats:
    """Returns nats [R, S] of the hidden tokens of every view; `packed` is `model.packed()`."""
    blocks, head = (None, None) if packed is None else packed
    if isinstance(batch, SharedBatch):
        states = _reread(model, blocks, batch, block_length)
    else:
        states = _read(model, blocks, batch, block_length)
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
        packed=head,
    )
    return TokenNats(*(values.reshape(batch.targets.shape) for values in found))


def _read(model: Any, blocks: Any, batch: Batch, block_length: int | None) -> Float[Array, "U S D"]:
    """The answers' rows, by the whole model on whole canvases."""
    positions, visible = _places(batch, batch.canvas.shape[1])
    window = (batch.start, batch.targets.shape[1])
    options: dict[str, Any] = {}
    if block_length:
        place = jnp.arange(visible.shape[1]) - batch.start
        options["attention_bias"] = _no_later_block(place, block_length)
    turn = model.rotation(positions)
    return model.hidden(batch.canvas, visible, turn=turn, window=window, blocks=blocks, **options)


def _reread(
    model: Any, blocks: Any, batch: SharedBatch, block_length: int | None
) -> Float[Array, "copies S D"]:
    """The answers' rows, beside keys and values of prompts before an answer that is all hidden.

    Exact under block-causal attention, where prompts never see answers.
    """
    length, size, span = batch.hidden.shape[1], batch.targets.shape[1], batch.copies.shape[1]
    positions, visible = _places(batch, length)
    seen = visible[:, None, None]
    if block_length:
        seen = seen & _no_later_block(jnp.arange(length) - batch.start, block_length)
    _, kept = model.reread(
        batch.hidden, model.memory(*batch.hidden.shape), model.region(0, length), seen,
        turn=model.rotation(positions), blocks=blocks,
    )  # fmt: skip

    def own(x: Array) -> Array:
        room = [(0, 0)] * (x.ndim - 2) + [(0, span), (0, 0)]
        return jnp.pad(jnp.take(x, batch.ground, axis=-4), room)

    copy, place = jnp.divmod(jnp.arange(span), size)
    is_own = copy[:, None] == copy
    if block_length:
        is_own &= _no_later_block(place, block_length)[0, 0]
    is_token = place < (batch.last[batch.ground] - batch.start)[:, None]
    is_prompt = visible[batch.ground] & (jnp.arange(length) < batch.start)
    is_prompt = jnp.broadcast_to(is_prompt[:, None], (len(is_prompt), span, length))
    states, _ = model.reread(
        batch.copies, jax.tree.map(own, kept), model.region(length, span),
        jnp.concatenate([is_prompt, is_own & is_token[:, None]], axis=-1)[:, None],
        turn=model.rotation(place + (batch.start - batch.first[batch.ground])[:, None]),
        blocks=blocks,
    )  # fmt: skip
    return states.reshape(-1, size, states.shape[-1])


def _places(
    batch: Batch | SharedBatch, length: int
) -> tuple[Int[Array, "rows L"], Bool[Array, "rows L"]]:
    """Positions, counted from a row's first token (padding shifts nothing), and what is one."""
    place = jnp.arange(length)
    positions = jnp.maximum(place - batch.first[:, None], 0)
    return positions, (place >= batch.first[:, None]) & (place < batch.last[:, None])


def _no_later_block(place: Int[Array, " L"], block_length: int) -> Bool[Array, "1 1 L L"]:
    """Which keys each query sees; blocks count from the answer's first token."""
    block = place // block_length
    return (block[None, :] <= block[:, None])[None, None]


def _seed_of(key: Array) -> int:
    high, low = np.asarray(jax.random.bits(key, (2,), jnp.uint32)).tolist()
    return high << 32 | low
