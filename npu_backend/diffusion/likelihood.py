"""Conditional log-likelihood of answers (LLaDA, arXiv:2502.09992v3, Eq. 6).

What is drawn, shared and averaged is decided in `common/scoring.py`; here a model reads canvases.

Shape letters: U canvases, R views of them, L length, S longest answer, D model width.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import Round, checked_tokens
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.scoring import mean_over_rounds, score_questions
from jaxllada.common.shared_prompts import SharedBatch
from jaxllada.common.view_reader import Reader
from jaxllada.common.views import Batch, Shapes
from npu_backend.calls import draw_seed, inference, on_host
from npu_backend.diffusion.token_nats import TokenNats, token_nats
from npu_backend.models.kept import Kept

B = TypeVar("B", Batch, SharedBatch)

SHAPES = Shapes()
"""Nothing is compiled: arrays are as long as they need to be."""


def log_likelihood(
    model: Any,
    prompt: Any,
    answer: Any,
    config: LikelihoodConfig | None = None,
    generator: torch.Generator | None = None,
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
        generator: for the masks, of any device; without it they follow from `config.seed` and the
            length of the answer, the same on every backend.

    Raises:
        UserError: ids outside the vocabulary, or more tokens than the model has positions.
    """
    config = config or LikelihoodConfig()
    prompt, answer = checked_tokens(on_host(prompt), on_host(answer), model.config)
    seed = config.seed if generator is None else draw_seed(generator)
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
    with inference(model):
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
    with inference(model):
        return mean_over_rounds(reader, prompt, answer, rounds, cfg_scale > 0)


def make_reader(model: Any, config: LikelihoodConfig, reuses_prompt: bool = False) -> Reader:
    """Returns what reads masked copies with this model."""
    if model.config.is_causal:
        raise UserError(
            "this model is autoregressive and its likelihood exact: use CausalEngine.log_likelihood"
        )

    def read(batch: Batch | SharedBatch) -> Iterable[Any]:
        return _Found(
            read_batch(
                model,
                batch,
                config.cfg_scale,
                is_guided=config.cfg_scale > 0,
                block_length=config.block_length,
            )
        )

    return Reader(read, model.config, SHAPES, config.rows, reuses_prompt)


def read_batch(
    model: Any,
    batch: Batch | SharedBatch,
    cfg_scale: float,
    *,
    is_guided: bool,
    block_length: int | None,
) -> TokenNats:
    """Returns nats [R, S] of the hidden tokens of every view."""
    counted = int(batch.asked.sum())
    if isinstance(batch, SharedBatch):
        batch = _placed(model, batch)
        states = _reread(model, batch, block_length)
    else:
        length = batch.canvas.shape[1]
        is_full = bool((batch.first == 0).all() and (batch.last == length).all())
        batch = _placed(model, batch)
        states = _read(model, batch, block_length, is_full)
    given = states.index_select(0, batch.given)
    if is_guided:
        # Logits are linear in these activations: guiding here is guiding the logits (Eq. 16).
        given, unconditional = given.float(), states.index_select(0, batch.without).float()
        given = unconditional + (cfg_scale + 1) * (given - unconditional)
    found = token_nats(
        (given * model.logit_scale).flatten(0, 1),
        model.head_weight.to(given.dtype),
        batch.targets.flatten(),
        batch.asked.flatten(),
        head_bias=None if model.head_bias is None else model.head_bias * model.logit_scale,
        counted=counted,
    )
    return TokenNats(*(values.view(batch.targets.shape) for values in found))


def _read(
    model: Any, batch: Batch, block_length: int | None, is_full: bool
) -> Float[Tensor, "U S D"]:
    """The answers' rows, by the whole model on whole canvases."""
    positions, visible = _places(batch, batch.canvas.shape[1])
    window = (batch.start, batch.targets.shape[1])
    options = {}
    if block_length:
        place = torch.arange(positions.shape[1], device=model.device) - batch.start
        options["attention_bias"] = _no_later_block(place, block_length)
    turn = model.rotation(positions)
    visible = None if is_full else visible
    return model.hidden(batch.canvas, visible, turn=turn, window=window, **options)


def _reread(
    model: Any, batch: SharedBatch, block_length: int | None
) -> Float[Tensor, "copies S D"]:
    """The answers' rows, beside keys and values of prompts before an answer that is all hidden.

    Exact under block-causal attention, where prompts never see answers.
    """
    length, size, span = batch.hidden.shape[1], batch.targets.shape[1], batch.copies.shape[1]
    positions, visible = _places(batch, length)
    column = torch.arange(length, device=model.device)
    seen = visible[:, None, None]
    if block_length:
        seen = seen & _no_later_block(column - batch.start, block_length)
    kept = model.memory(*batch.hidden.shape)
    model.reread(
        batch.hidden, kept, model.region(0, length), seen,
        turn=model.rotation(positions), window=(0, 1),
    )  # fmt: skip

    def own(x: Tensor) -> Tensor:
        return functional.pad(x.index_select(0, batch.ground), (0, 0, 0, 0, 0, span))

    columns = torch.arange(span, device=model.device)
    copy, place = torch.div(columns, size, rounding_mode="floor"), columns % size
    is_own = copy[:, None] == copy
    if block_length:
        is_own = is_own & _no_later_block(place, block_length)[0, 0]
    first, last = (x.index_select(0, batch.ground) for x in (batch.first, batch.last))
    is_token = place < (last - batch.start)[:, None]
    is_prompt = visible.index_select(0, batch.ground) & (column < batch.start)
    is_prompt = is_prompt[:, None].expand(-1, span, -1)
    states = model.reread(
        batch.copies, [Kept(own(x.k), own(x.v)) for x in kept], model.region(length, span),
        torch.cat([is_prompt, is_own & is_token[:, None]], dim=-1)[:, None],
        turn=model.rotation(place + (batch.start - first)[:, None]),
    )  # fmt: skip
    return states.reshape(-1, size, states.shape[-1])


def _places(
    batch: Batch | SharedBatch, length: int
) -> tuple[Int[Tensor, "rows L"], Bool[Tensor, "rows L"]]:
    """Positions, counted from a row's first token (padding shifts nothing), and what is one."""
    place = torch.arange(length, device=batch.first.device)
    positions = (place - batch.first[:, None]).clamp(min=0)
    return positions, (place >= batch.first[:, None]) & (place < batch.last[:, None])


def _no_later_block(place: Int[Tensor, " L"], block_length: int) -> Bool[Tensor, "1 1 L L"]:
    """Which keys each query sees; blocks count from the answer's first token."""
    block = torch.div(place, block_length, rounding_mode="floor")
    return (block[None, :] <= block[:, None])[None, None]


class _Found:
    """Results that stay on their device until NumPy asks for them."""

    def __init__(self, found: TokenNats):
        self._found = found

    def __iter__(self) -> Iterator[np.ndarray]:
        return (values.cpu().numpy() for values in self._found)


def _placed(model: Any, batch: B) -> B:
    return type(batch)._make(x if isinstance(x, int) else _on(model, x) for x in batch)


def _on(model: Any, array: np.ndarray) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(array))
    return (values if values.dtype == torch.bool else values.long()).to(model.device)
