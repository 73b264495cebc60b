"""dLLM-Cache (arXiv:2506.06295v1, section 3): prompt and answer are recomputed at their own pace.

Every block keeps keys and values of all positions, and for the answer what its attention and its
feed-forward part gave. The prompt is recomputed every `prompt_interval` calls, the answer every
`answer_interval`; between, only those answer rows are whose values have turned the most. The first
block is always computed. What attention and feed-forward gave for the prompt need not be kept:
nothing reads the prompt's rows until the prompt is recomputed.

Shape letters: B, G rows of a model call, L canvas length, N answer length, K chosen rows,
S positions of the window, D model width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.config.cache import FeatureCache
from jaxllada.common.policy import Policy
from npu_backend.models.kept import Kept, Region, renew_rows
from npu_backend.models.mask_predictor import take_rows
from npu_backend.sampling.caches.sight import Sight
from npu_backend.sampling.reader import Body, Call

EPSILON = 1e-8
"""Smallest product of norms in a cosine."""

STILL = 1e-5
"""A cosine this close to 1 counts as 1: what has not moved is told apart by rounding alone."""


@dataclass
class Features:
    """What one block keeps; written in place."""

    kept: Kept
    attention: Float[Tensor, "B N D"]
    mlp: Float[Tensor, "B N D"]


@dataclass
class Place:
    """Where the rows of a call lie."""

    start: int
    """First position of the answer."""
    count: int
    """Its length."""
    turn: Any
    """Rotary angles of the canvas."""
    sight: Sight

    def answer(self, x: Tensor) -> Tensor:
        """Cuts the answer out of [B, L, ...]."""
        return x.narrow(1, self.start, self.count)


@dataclass(frozen=True)
class FeatureReader:
    """Reads the active window; `chosen` rows of the answer are recomputed in every call."""

    rule: FeatureCache
    answer_length: int

    @property
    def chosen(self) -> int:
        """Rows of the answer that are recomputed between its intervals."""
        return int(self.answer_length * self.rule.ratio)

    @property
    def turns_values(self) -> bool:
        """Whether values are renewed between intervals at all."""
        return self.rule.ratio > 0

    def start(self, body: Body, policy: Policy) -> list[Features]:
        """Room for the keys and values of the canvas and the features of the answer."""
        model = body.model
        batch, length = body.turn[0].shape[:2]
        width = (batch, self.answer_length, model.config.d_model)
        blank = torch.zeros(width, dtype=model.dtype, device=model.device)
        memory = model.memory(batch, length)
        return [Features(kept, blank.clone(), blank.clone()) for kept in memory]

    def read(
        self, body: Body, memory: list[Features], call: Call, policy: Policy
    ) -> tuple[Float[Tensor, "G S D"], list[Features]]:
        """Returns the hidden rows of the window, and the memory after the call."""
        place = Place(body.prompt_length, self.answer_length, body.turn, body.sight)
        renew_answer = call.age % self.rule.answer_interval == 0
        renew_prompt = call.age % self.rule.prompt_interval == 0
        own = (call.canvas,) if call.soft is None else (call.canvas, call.soft)
        x = body.model.embed(*(x if renew_prompt else place.answer(x) for x in own))
        for index, (block, own) in enumerate(zip(body.model.blocks, memory, strict=True)):
            if renew_prompt:
                x = _whole(self, block, x, own, place, renew_answer or index == 0)
            elif renew_answer or index == 0:
                x = _answer(block, x, own, place)
            else:
                x = _partial(self, block, x, own, place)
        first = call.start - (0 if renew_prompt else place.start)
        return body.model.ln_f(x[:, first : first + policy.window]), memory


def _whole(
    reader: FeatureReader,
    block: Any,
    x: Float[Tensor, "B L D"],
    own: Features,
    place: Place,
    renew_answer: bool,
) -> Float[Tensor, "B L D"]:
    """Recomputes the prompt, and of the answer what is due."""
    attention, turn = block.attention, place.turn
    y = block.attn_norm(x)
    k, v = attention.keys(y, turn), attention.values(y)
    length = x.shape[1]
    fresh = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if not renew_answer:
        fresh[:, place.start : place.start + place.count] = False
        if reader.chosen:
            index = _most_turned(reader, place.answer(v), place.answer(own.kept.v))
            # A mask by comparison: scatters of booleans are not on every device.
            rows = torch.arange(length, device=x.device)
            fresh |= (rows == (place.start + index)[..., None]).any(dim=1)
    renew_rows(own.kept.k, k, Region(0, length, fresh))
    renew_rows(own.kept.v, v, Region(0, length, None if reader.turns_values else fresh))
    queries = attention.queries(y, turn)
    mixed = attention.look(queries, own.kept.k, own.kept.v, place.sight.of_all())
    h = x + _join(mixed, own.attention, fresh, place)
    return h + _join(block.mlp(block.ff_norm(h)), own.mlp, fresh, place)


def _answer(
    block: Any, x: Float[Tensor, "B N D"], own: Features, place: Place
) -> Float[Tensor, "B N D"]:
    """Recomputes the whole answer."""
    attention = block.attention
    y = block.attn_norm(x)
    turn = tuple(place.answer(angles) for angles in place.turn)
    region = Region(place.start, place.count)
    renew_rows(own.kept.k, attention.keys(y, turn), region)
    renew_rows(own.kept.v, attention.values(y), region)
    rows = torch.arange(place.start, place.start + place.count, device=x.device)
    queries, visible = attention.queries(y, turn), place.sight.of(rows)
    own.attention.copy_(attention.look(queries, own.kept.k, own.kept.v, visible))
    h = x + own.attention
    own.mlp.copy_(block.mlp(block.ff_norm(h)))
    return h + own.mlp


def _partial(
    reader: FeatureReader, block: Any, x: Float[Tensor, "B N D"], own: Features, place: Place
) -> Float[Tensor, "B N D"]:
    """Recomputes the chosen rows of the answer."""
    if not reader.turns_values:
        return x + own.attention + own.mlp
    attention = block.attention
    y = block.attn_norm(x)
    v = attention.values(y)
    index = _most_turned(reader, v, place.answer(own.kept.v))
    position = place.start + index
    renew_rows(own.kept.v, v, Region(place.start, place.count))
    if not reader.chosen:
        return x + own.attention + own.mlp
    rows = take_rows(y, index)
    turn = tuple(_angles(angles, position) for angles in place.turn)
    _put_rows(own.kept.k, position, attention.keys(rows, turn))
    queries, visible = attention.queries(rows, turn), place.sight.of(position)
    mixed = attention.look(queries, own.kept.k, own.kept.v, visible)
    _put_rows(own.attention, index, mixed)
    h = x + own.attention
    _put_rows(own.mlp, index, block.mlp(block.ff_norm(take_rows(h, index))))
    return h + own.mlp


def _most_turned(
    reader: FeatureReader,
    new: Float[Tensor, "B N kv_heads H"],
    old: Float[Tensor, "B N kv_heads H"],
) -> Int[Tensor, "B K"]:
    """The answer rows whose values have the smallest cosine with those kept; lowest first on ties.

    Over all key/value heads together, in float32.
    """
    a, b = (values.float().flatten(2) for values in (new, old))
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    cosine = (a * b).sum(dim=-1) / norms.clamp(min=EPSILON)
    cosine = cosine.masked_fill(cosine > 1 - STILL, 1.0)
    return cosine.argsort(dim=1, stable=True)[:, : reader.chosen]


def _join(
    new: Float[Tensor, "B L D"],
    old: Float[Tensor, "B N D"],
    fresh: Bool[Tensor, "B L"],
    place: Place,
) -> Float[Tensor, "B L D"]:
    """Takes the answer's rows that are not fresh from what was kept, and keeps the others."""
    answer = place.answer(new)
    old.copy_(torch.where(place.answer(fresh)[..., None], answer, old))
    answer.copy_(old)
    return new


def _angles(angles: Tensor, position: Int[Tensor, "B K"]) -> Tensor:
    """Angles of some positions: those of a canvas are the same for all rows, or their own."""
    own = angles.expand(len(position), *angles.shape[1:]).flatten(2)
    return take_rows(own, position)[:, :, None]


def _put_rows(target: Tensor, index: Int[Tensor, "B K"], rows: Tensor) -> None:
    """Writes rows at their own places in each row of the batch."""
    batch, length = target.shape[:2]
    starts = torch.arange(batch, device=target.device)[:, None] * length
    flat = target.view(batch * length, -1)
    flat.index_copy_(0, (index + starts).flatten(), rows.reshape(index.numel(), -1))
