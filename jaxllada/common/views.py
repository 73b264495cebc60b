"""Masked copies of answers as batches of arrays for a model, each canvas computed once.

A view hides some tokens of an answer and asks for their log-probabilities. Views of one model call
may belong to different questions: prompts are padded on the left, so that all answers begin in one
column, and positions count from a row's first token. Views that show the same canvas (options that
differ only where they are hidden, equal masks drawn twice, guidance without a prompt) share it.

`common/view_reader.py` sends them to a model, `common/shared_prompts.py` lays them out beside keys
and values of their prompts.

Shape letters: U canvases, R views, L columns, S columns from the first of the answers on, N tokens
of one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

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


class Batch(NamedTuple):
    """The arrays of one model call, of NumPy or of the backend."""

    canvas: Any
    """[U, L] tokens and masks."""
    first: Any
    """[U] column of each row's first token; those before it are padding."""
    last: Any
    """[U] column behind each row's last token."""
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
    size = round_up(max(len(v.text.answer) + len(v.text.tail) for v in views), shapes.answer)
    length = round_up(start + size, shapes.length)
    canvas, first, last = [], [], []
    known: dict[bytes, int] = {}

    def place(view: View, hides_prompt: bool) -> int:
        key = canvas_key(view, model.mask_id, hides_prompt)
        if key not in known:
            known[key] = len(canvas)
            row, begin, end = lay(view, start, length, model, hides_prompt)
            canvas.append(row)
            first.append(begin)
            last.append(end)
        return known[key]

    given = [place(view, False) for view in views]
    without = [place(view, True) for view in views] if is_guided else given
    targets, asked = questions(views, size)
    most = rows * (2 if is_guided else 1)
    canvases, readings = len(canvas), len(views)
    if shapes.is_padded:  # R in few sizes for each U, as every combination is compiled
        canvases = min(power(canvases, 2), most) if canvases <= most else power(canvases, 2)
        readings = max(canvases, power(readings, 2))
    batch = Batch._make(
        [
            *(padded(x, canvases) for x in (canvas, first, last)), start,
            *(padded(x, readings) for x in (given, without, targets, asked)),
        ]
    )  # fmt: skip
    return batch, len(canvas)


def lay(
    view: View, start: int, length: int, model: ModelConfig, hides_prompt: bool = False
) -> tuple[Int[np.ndarray, " L"], int, int]:
    """One canvas: its tokens, the column of the first and the one behind the last."""
    prompt, answer, tail = view.text
    row = np.full(length, model.pad_token_id, np.int32)
    begin, end = start - len(prompt), start + len(answer)
    row[begin:start] = model.mask_id if hides_prompt else prompt
    row[start:end] = np.where(view.is_hidden, model.mask_id, answer)
    row[end : end + len(tail)] = tail
    return row, begin, end + len(tail)


def questions(
    views: Sequence[View], size: int
) -> tuple[Int[np.ndarray, "R S"], Bool[np.ndarray, "R S"]]:
    """The answers' tokens, and which of them are asked for."""
    targets = np.zeros((len(views), size), np.int32)
    asked = np.zeros(targets.shape, bool)
    for row, (text, is_hidden) in enumerate(views):
        targets[row, : len(text.answer)] = text.answer
        asked[row, : len(text.answer)] = is_hidden
    return targets, asked


def canvas_key(view: View, mask_id: int, hides_prompt: bool) -> bytes:
    """Equal for views that show the same tokens."""
    prompt, answer, tail = view.text
    shown = np.where(view.is_hidden, mask_id, answer)
    prompt = np.full_like(prompt, mask_id) if hides_prompt else prompt
    lengths = np.array([len(prompt), len(tail)], np.int32)
    return b"".join(x.astype(np.int32).tobytes() for x in (lengths, prompt, shown, tail))


def padded(rows: Any, wanted: int) -> np.ndarray:
    """Repeats the first row, or asks for nothing more, up to the wanted number of rows."""
    array = np.asarray(rows)
    array = array if array.dtype == bool else array.astype(np.int32)
    filler = np.zeros_like(array[:1]) if array.dtype == bool else array[:1]
    return np.concatenate([array, np.repeat(filler, wanted - len(array), axis=0)])


def power(count: int, base: int) -> int:
    """The smallest power of `base` that is not below `count`."""
    found = 1
    while found < count:
        found *= base
    return found


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below `length`."""
    return -(-length // multiple) * multiple
