"""dLLM-Cache (arXiv:2506.06295v1, section 3): prompt and answer are recomputed at their own pace.

Every block keeps keys and values of all positions, and for the answer what its attention and its
feed-forward part gave. The prompt is recomputed every `prompt_interval` calls, the answer every
`answer_interval`; between, only those answer rows are whose values have turned the most. The first
block is always computed. What attention and feed-forward gave for the prompt need not be kept:
nothing reads the prompt's rows until the prompt is recomputed.

Shape letters: B, G rows of a model call, L canvas length, N answer length, K chosen rows,
S positions of the window, D model width.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.config.cache import FeatureCache
from jaxllada.common.policy import Policy
from jaxllada.models.attention import take_window
from jaxllada.models.block import layer_of
from jaxllada.models.kept import Kept, Region, renew_rows
from jaxllada.sampling.caches.sight import Sight
from jaxllada.sampling.reader import Body, Call

EPSILON = 1e-8
"""Smallest product of norms in a cosine."""

STILL = 1e-5
"""A cosine this close to 1 counts as 1: what has not moved is told apart by rounding alone."""


class Features(NamedTuple):
    """What one block keeps; a stack of blocks has a leading axis."""

    kept: Kept
    attention: Float[Array, "*layers B N D"]
    mlp: Float[Array, "*layers B N D"]


class Place(NamedTuple):
    """Where the rows of a call lie."""

    start: Int[Array, ""]
    """First position of the answer."""
    count: int
    """Its length."""
    turn: Any
    """Rotary angles of the canvas."""
    sight: Sight

    def answer(self, x: Array) -> Array:
        """Cuts the answer out of [B, L, ...]."""
        return lax.dynamic_slice_in_dim(x, self.start, self.count, 1)


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

    def start(self, body: Body, policy: Policy) -> Any:
        """Room for the keys and values of the canvas and the features of the answer."""
        model = body.model
        batch, length = body.visible.shape
        memory = model.memory(batch, length, body.blocks)
        dtype = jnp.dtype(model.compute.dtype)
        width = (batch, self.answer_length, model.config.d_model)

        def room(shape: tuple[int, ...], kept: Kept) -> Features:
            return Features(kept, jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        if isinstance(memory, Kept):
            return room((len(memory.k), *width), memory)
        return tuple(room(width, kept) for kept in memory)

    def read(
        self, body: Body, memory: Any, call: Call, policy: Policy
    ) -> tuple[Float[Array, "G S D"], Any]:
        """Returns the hidden rows of the window, and the memory after the call."""
        place = Place(body.prompt_length, self.answer_length, body.turn, body.sight)
        renew_answer = call.age % self.rule.answer_interval == 0
        renew_prompt = call.age % self.rule.prompt_interval == 0
        stack = body.model.blocks if body.blocks is None else body.blocks

        def whole(memory: Any) -> tuple[Array, Any]:
            step = functools.partial(_whole, self, place=place, renew_answer=renew_answer)
            x = body.model.embed(call.canvas, call.soft)
            x, memory = _walk(step, step, stack, x, memory)
            return take_window(x, (call.start, policy.window)), memory

        def answer(is_due: bool, memory: Any) -> tuple[Array, Any]:
            first = functools.partial(_answer, place=place)
            later = first if is_due else functools.partial(_partial, self, place=place)
            soft = None if call.soft is None else place.answer(call.soft)
            x = body.model.embed(place.answer(call.canvas), soft)
            x, memory = _walk(first, later, stack, x, memory)
            return take_window(x, (call.start - place.start, policy.window)), memory

        branches = [functools.partial(answer, False), functools.partial(answer, True), whole]
        index = jnp.where(renew_prompt, 2, renew_answer.astype(jnp.int32))
        rows, memory = lax.switch(index, branches, memory)
        return body.model.ln_f(rows), memory


def _walk(first: Any, later: Any, blocks: Any, x: Array, memory: Any) -> tuple[Array, Any]:
    """Applies `first` to the first block and `later` to the others."""
    if isinstance(blocks, tuple):
        renewed = []
        for index, (block, own) in enumerate(zip(blocks, memory, strict=True)):
            x, own = (later if index else first)(block, x, own, is_first=index == 0)
            renewed.append(own)
        return x, tuple(renewed)

    def at(layer: Any, carry: tuple[Array, Any], function: Any, is_first: bool) -> Any:
        x, memory = carry
        own = jax.tree.map(lambda part: part[layer], memory)
        x, own = function(layer_of(blocks, layer), x, own, is_first=is_first)

        def put(whole: Array, part: Array) -> Array:
            return lax.dynamic_update_index_in_dim(whole, part, layer, 0)

        return x, jax.tree.map(put, memory, own)

    carry = at(0, (x, memory), first, True)
    depth = len(memory.mlp)
    return lax.fori_loop(1, depth, lambda layer, carry: at(layer, carry, later, False), carry)


def _whole(
    reader: FeatureReader, block: Any, x: Array, own: Features, *,
    is_first: bool, place: Place, renew_answer: Bool[Array, ""],
) -> tuple[Array, Features]:  # fmt: skip
    """Recomputes the prompt, and of the answer what is due."""
    attention, turn = block.attention, place.turn
    y = block.attn_norm(x)
    k, v = attention.keys(y, turn), attention.values(y)
    length = x.shape[1]
    in_answer = jnp.arange(length) - place.start
    in_answer = (in_answer >= 0) & (in_answer < place.count)
    fresh = jnp.ones((1, length), bool) if is_first else ~in_answer[None] | renew_answer
    if not is_first and reader.chosen:
        index = _most_turned(reader, place.answer(v), _own_values(own, place))
        row = jnp.arange(len(index))[:, None]
        fresh = jnp.broadcast_to(fresh, x.shape[:2]).at[row, place.start + index].set(True)
    new_values = jnp.ones_like(fresh) if reader.turns_values else fresh
    kept = Kept(
        renew_rows(own.kept.k, k, Region(0, length, fresh)),
        renew_rows(own.kept.v, v, Region(0, length, new_values)),
    )
    mixed = attention.look(attention.queries(y, turn), kept.k, kept.v, place.sight.of_all())
    mixed, mixed_answer = _join(mixed, own.attention, fresh, place)
    h = x + mixed
    inner, inner_answer = _join(block.mlp(block.ff_norm(h)), own.mlp, fresh, place)
    return h + inner, Features(kept, mixed_answer, inner_answer)


def _answer(
    block: Any, x: Array, own: Features, *, is_first: bool, place: Place
) -> tuple[Array, Features]:
    """Recomputes the whole answer."""
    attention = block.attention
    y = block.attn_norm(x)
    turn = tuple(place.answer(angles) for angles in place.turn)
    region = Region(place.start, place.count)
    kept = Kept(
        renew_rows(own.kept.k, attention.keys(y, turn), region),
        renew_rows(own.kept.v, attention.values(y), region),
    )
    visible = place.sight.of(place.start + jnp.arange(place.count))
    mixed = attention.look(attention.queries(y, turn), kept.k, kept.v, visible)
    h = x + mixed
    inner = block.mlp(block.ff_norm(h))
    return h + inner, Features(kept, mixed, inner)


def _partial(
    reader: FeatureReader, block: Any, x: Array, own: Features, *, is_first: bool, place: Place
) -> tuple[Array, Features]:
    """Recomputes the chosen rows of the answer."""
    if not reader.turns_values:
        return x + own.attention + own.mlp, own
    attention = block.attention
    y = block.attn_norm(x)
    v = attention.values(y)
    index = _most_turned(reader, v, _own_values(own, place))
    position = place.start + index
    row = jnp.arange(len(index))[:, None]

    values = renew_rows(own.kept.v, v, Region(place.start, place.count))
    kept = own.kept._replace(v=values)
    if not reader.chosen:
        return x + own.attention + own.mlp, own._replace(kept=kept)
    rows = _take(y, index)
    # Angles are the same for all rows of a batch, or their own.
    turn = tuple(
        _take(jnp.broadcast_to(angles, (len(index), *angles.shape[1:])), position)
        for angles in place.turn
    )
    keys = attention.keys(rows, turn)
    kept = kept._replace(k=kept.k.at[row, :, position].set(keys, unique_indices=True))
    queries = attention.queries(rows, turn)
    mixed = attention.look(queries, kept.k, kept.v, place.sight.of(position))
    mixed = own.attention.at[row, index].set(mixed, unique_indices=True)
    h = x + mixed
    inner = block.mlp(block.ff_norm(_take(h, index)))
    inner = own.mlp.at[row, index].set(inner, unique_indices=True)
    return h + inner, Features(kept, mixed, inner)


def _most_turned(
    reader: FeatureReader, new: Float[Array, "B N kv_heads H"], old: Float[Array, "B N kv_heads H"]
) -> Int[Array, "B K"]:
    """The answer rows whose values have the smallest cosine with those kept; lowest first on ties.

    Over all key/value heads together, in float32.
    """
    a, b = (values.astype(jnp.float32).reshape(*values.shape[:2], -1) for values in (new, old))
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosine = jnp.sum(a * b, axis=-1) / jnp.maximum(norms, EPSILON)
    cosine = jnp.where(cosine > 1 - STILL, 1, cosine)
    return jnp.argsort(cosine, axis=1, stable=True)[:, : reader.chosen]


def _own_values(own: Features, place: Place) -> Float[Array, "B N kv_heads H"]:
    values = lax.dynamic_slice_in_dim(own.kept.v, place.start, place.count, 2)
    return jnp.swapaxes(values, 1, 2)


def _join(
    new: Float[Array, "B L D"], old: Float[Array, "B N D"], fresh: Bool[Array, "#B L"], place: Place
) -> tuple[Float[Array, "B L D"], Float[Array, "B N D"]]:
    """Takes the answer's rows that are not fresh from what was kept: for all, and the answer's."""
    answer = jnp.where(place.answer(fresh)[..., None], place.answer(new), old)
    return lax.dynamic_update_slice_in_dim(new, answer, place.start, 1), answer


def _take(x: Float[Array, "B M ..."], index: Int[Array, "B K"]) -> Float[Array, "B K ..."]:
    return jax.vmap(lambda rows, index: rows[index])(x, index)
