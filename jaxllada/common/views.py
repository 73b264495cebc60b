"""Masked copies of answers as batches of arrays for a model, each canvas computed once.

A view hides some tokens of an answer and asks for their log-probabilities. Views of one model call
may belong to different questions: prompts are padded on the left, so that all answers begin in one
column, and positions count from a row's first token. Views that show the same canvas (options that
differ only where they are hidden, equal masks drawn twice, guidance without a prompt) share it.

Shape letters: U canvases, R views, L columns, S columns from the first of the answers on, N tokens
of one answer.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxllada.common.config.model import ModelConfig


class Text(NamedTuple):
    """A prompt, an answer and what is shown behind it, as int32 tokens."""

    prompt: Int[np.ndarray, " P"]
    answer: Int[np.ndarray, " N"]
    tail: Int[np.ndarray, " T"]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer) + len(self.tail)


class View(NamedTuple):
    """One masked copy of a text."""

    text: Text
    is_hidden: Bool[np.ndarray, " N"]


class Reading(NamedTuple):
    """What a model says about the hidden tokens of a view; 0 and False elsewhere."""

    nll: Float[np.ndarray, " N"]
    """-log p of the true token, nats."""
    best: Float[np.ndarray, " N"]
    """-log p of the most likely token, nats."""
    is_best: Bool[np.ndarray, " N"]
    """Whether the true token is the most likely one."""


class Batch(NamedTuple):
    """The arrays of one model call, of NumPy or of the backend."""

    canvas: Any
    """[U, L] tokens and masks."""
    first: Any
    """[U] column of each row's first token; those before it are padding."""
    last: Any
    """[U] column behind each row's last token."""
    ground: Any
    """[U] the entry of `grounds` with the same prompt, whose keys and values may serve."""
    grounds: Any
    """[G] rows of `canvas` that, with the whole answer hidden, are these grounds."""
    sizes: Any
    """[U] answer tokens of each row."""
    start: Any
    """Column of the first answer token of every row."""
    given: Any
    """[R] the canvas of each view."""
    without: Any
    """[R] its canvas with the prompt hidden, for guidance; else the same as `given`."""
    targets: Any
    """[R, S] answer tokens."""
    asked: Any
    """[R, S] whether a token is hidden and asked for."""


@dataclass(frozen=True)
class Shapes:
    """To which sizes the arrays are rounded up, so that few are ever compiled."""

    length: int = 1
    answer: int = 1
    is_padded: bool = False
    """Whether numbers of rows are rounded up, canvases to a power of two."""


ReadBatch = Callable[[Batch], Iterable[Any]]
"""Returns `nll`, `best` and `is_best` of the views [R, S], as anything NumPy can read."""


class Reader:
    """Reads views with a backend and counts the canvases that it computed."""

    def __init__(self, read_batch: ReadBatch, model: ModelConfig, shapes: Shapes, rows: int):
        """`rows` canvases a call at most, twice as many with guidance."""
        self._read, self._model, self._shapes, self._rows = read_batch, model, shapes, rows
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
            batch, count = pack(
                [views[i] for i in members], self._model, self._shapes, is_guided, self._rows
            )
            self.num_canvases += count
            waiting.append((members, self._read(batch)))
            if len(waiting) > 2:  # the device computes while the host packs
                collect()
        while waiting:
            collect()
        return [reading for reading in readings if reading is not None]

    def _kind(self, view: View, is_guided: bool) -> "_Kind":
        text, mask_id = view.text, self._model.mask_id
        size = _up(len(text.answer) + len(text.tail), self._shapes.answer)
        canvas = _canvas_key(view, mask_id, False)
        without = _canvas_key(view, mask_id, True) if is_guided else canvas
        return _Kind(size, len(text.prompt), canvas, without)

    @staticmethod
    def _cut(kinds: Sequence["_Kind"], most: int) -> Iterator[list[int]]:
        """Views of similar lengths, with `most` canvases at most; equal ones stay together."""
        members: list[int] = []
        canvases: set[bytes] = set()
        for i in sorted(range(len(kinds)), key=kinds.__getitem__):
            needed = {kinds[i].canvas, kinds[i].without}
            is_other = members and kinds[i].size != kinds[members[-1]].size
            if is_other or (members and len(canvases | needed) > most):
                yield members
                members, canvases = [], set()
            members.append(i)
            canvases |= needed
        if members:
            yield members


class _Kind(NamedTuple):
    """What decides which views share a call."""

    size: int
    prompt_length: int
    canvas: bytes
    without: bytes


def pack(
    views: Sequence[View],
    model: ModelConfig,
    shapes: Shapes,
    is_guided: bool = False,
    rows: int = 0,
) -> tuple[Batch, int]:
    """Lays views out as one call, and says how many different canvases it has.

    With `rows`, numbers of canvases are rounded up to a power of two but not above `rows`.
    """
    start = max(len(view.text.prompt) for view in views)
    size = _up(max(len(v.text.answer) + len(v.text.tail) for v in views), shapes.answer)
    length = _up(start + size, shapes.length)
    canvas, first, last, sizes, ground, grounds = [], [], [], [], [], []
    known: dict[bytes, int] = {}
    known_grounds: dict[tuple[bytes, int, bytes], int] = {}

    def place(view: View, hides_prompt: bool) -> int:
        key = _canvas_key(view, model.mask_id, hides_prompt)
        if key not in known:
            known[key] = len(canvas)
            prompt, answer, tail = view.text
            row = np.full(length, model.pad_token_id, np.int32)
            begin, end = start - len(prompt), start + len(answer)
            row[begin:start] = model.mask_id if hides_prompt else prompt
            row[start:end] = np.where(view.is_hidden, model.mask_id, answer)
            row[end : end + len(tail)] = tail
            base = (row[begin:start].tobytes(), len(answer), tail.tobytes())
            if base not in known_grounds:
                known_grounds[base] = len(grounds)
                grounds.append(len(canvas))
            canvas.append(row)
            first.append(begin)
            last.append(end + len(tail))
            sizes.append(len(answer))
            ground.append(known_grounds[base])
        return known[key]

    given = [place(view, False) for view in views]
    without = [place(view, True) for view in views] if is_guided else given
    targets = np.zeros((len(views), size), np.int32)
    asked = np.zeros(targets.shape, bool)
    for row, (text, is_hidden) in enumerate(views):
        targets[row, : len(text.answer)] = text.answer
        asked[row, : len(text.answer)] = is_hidden
    most = rows * (2 if is_guided else 1)
    canvases, readings, bases = len(canvas), len(views), len(grounds)
    if shapes.is_padded:  # R and G in few sizes for each U, as every combination is compiled
        canvases = min(_power(canvases, 2), most) if canvases <= most else _power(canvases, 2)
        readings = max(canvases, _power(readings, 2))
        bases = min(_power(bases, 4), canvases)
    by_canvas = [_padded(x, canvases) for x in (canvas, first, last, ground)]
    batch = Batch._make(
        [
            *by_canvas, _padded(grounds, bases), _padded(sizes, canvases), start,
            *(_padded(x, readings) for x in (given, without, targets, asked)),
        ]
    )  # fmt: skip
    return batch, len(canvas)


def _canvas_key(view: View, mask_id: int, hides_prompt: bool) -> bytes:
    prompt, answer, tail = view.text
    shown = np.where(view.is_hidden, mask_id, answer)
    prompt = np.full_like(prompt, mask_id) if hides_prompt else prompt
    lengths = np.array([len(prompt), len(tail)], np.int32)
    return b"".join(x.astype(np.int32).tobytes() for x in (lengths, prompt, shown, tail))


def _padded(rows: Any, wanted: int) -> np.ndarray:
    """Repeats the first row, or asks for nothing more, up to the wanted number of rows."""
    array = np.asarray(rows)
    array = array if array.dtype == bool else array.astype(np.int32)
    filler = np.zeros_like(array[:1]) if array.dtype == bool else array[:1]
    return np.concatenate([array, np.repeat(filler, wanted - len(array), axis=0)])


def _power(count: int, base: int) -> int:
    """The smallest power of `base` that is not below `count`."""
    power = 1
    while power < count:
        power *= base
    return power


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
