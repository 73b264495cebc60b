"""Reads masked copies of answers with a backend: views in, nats of their hidden tokens out.

Views of similar lengths share a model call, and what shows the same tokens is computed once
(`common/views.py`, `common/shared_prompts.py`).

Shape letters: R views, S columns from the first of the answers on, N tokens of one answer.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.shared_prompts import copies_per_row, ground_key, pack_shared
from jaxllada.common.views import Shapes, View, canvas_key, pack, round_up


class Reading(NamedTuple):
    """What a model says about the hidden tokens of a view; 0 and False elsewhere."""

    nll: Float[np.ndarray, " N"]
    """-log p of the true token, nats."""
    best: Float[np.ndarray, " N"]
    """-log p of the most likely token, nats."""
    is_best: Bool[np.ndarray, " N"]
    """Whether the true token is the most likely one."""


ReadBatch = Callable[[Any], Iterable[Any]]
"""Takes a `Batch` or a `SharedBatch`; returns `nll`, `best` and `is_best` of its views [R, S], as
anything NumPy can read."""


class Reader:
    """Reads views with a backend and counts the canvases that it computed."""

    def __init__(
        self,
        read_batch: ReadBatch,
        model: ModelConfig,
        shapes: Shapes,
        rows: int,
        shares_prompts: bool = False,
    ):
        """`rows` canvases a call at most, twice as many with guidance.

        With `shares_prompts` batches are `SharedBatch`, and so many rows of copies.
        """
        self._read, self._model, self._shapes, self._rows = read_batch, model, shapes, rows
        self._shares_prompts = shares_prompts
        self.num_canvases = 0

    def __call__(self, views: Sequence[View], is_guided: bool = False) -> list[Reading]:
        """Returns one reading per view, in their order."""
        readings: list[Reading | None] = [None] * len(views)
        waiting: deque[tuple[list[int], Iterable[Any]]] = deque()

        def collect() -> None:
            members, found = waiting.popleft()
            nll, best, is_best = (np.asarray(values) for values in found)
            for row, member in enumerate(members):
                n = len(views[member].is_hidden)
                readings[member] = Reading(nll[row, :n], best[row, :n], is_best[row, :n])

        kinds = [self._kind(view, is_guided) for view in views]
        for members in self._cut(kinds, self._rows * (2 if is_guided else 1)):
            part = [views[i] for i in members]
            if self._shares_prompts:
                batch, count = pack_shared(part, self._model, self._shapes, is_guided)
            else:
                batch, count = pack(part, self._model, self._shapes, is_guided, self._rows)
            self.num_canvases += count
            waiting.append((members, self._read(batch)))
            if len(waiting) > 2:  # the device computes while the host packs
                collect()
        while waiting:
            collect()
        return [reading for reading in readings if reading is not None]

    def _kind(self, view: View, is_guided: bool) -> "_Kind":
        text = view.text
        size = round_up(len(text.answer) + len(text.tail), self._shapes.answer)
        given = self._canvas(view, False)
        without = self._canvas(view, True) if is_guided else given
        return _Kind(size, len(text.prompt), given, without)

    def _canvas(self, view: View, hides_prompt: bool) -> "_Canvas":
        key = canvas_key(view, self._model.mask_id, hides_prompt)
        return _Canvas(ground_key(view, hides_prompt) if self._shares_prompts else key, key)

    def _cut(self, kinds: Sequence["_Kind"], most: int) -> Iterator[list[int]]:
        """Views of similar lengths, with `most` rows at most; equal ones stay together."""
        members: list[int] = []
        held: dict[bytes, set[bytes]] = {}
        rows = 0
        for i in sorted(range(len(kinds)), key=kinds.__getitem__):
            kind = kinds[i]
            per_row = copies_per_row(kind.size) if self._shares_prompts else 1
            is_other = members and kind.size != kinds[members[-1]].size
            new = {c for c in kind[2:] if c.key not in held.get(c.ground, ())}
            needed = sum(len(held.get(c.ground, ())) % per_row == 0 for c in new)
            if is_other or (members and rows + needed > most):
                yield members
                members, held, rows = [], {}, 0
                new, needed = set(kind[2:]), len(set(kind[2:]))
            members.append(i)
            rows += needed
            for canvas in new:
                held.setdefault(canvas.ground, set()).add(canvas.key)
        if members:
            yield members


class _Canvas(NamedTuple):
    """What a view shows, and whose keys and values it needs; itself where none are shared."""

    ground: bytes
    key: bytes


class _Kind(NamedTuple):
    """What decides which views share a call."""

    size: int
    prompt_length: int
    given: _Canvas
    without: _Canvas
