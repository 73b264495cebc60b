"""Masked copies of answers beside keys and values of prompts that are computed once.

Keys and values of a ground (a prompt before an answer that is all hidden) serve every copy of that
answer. Copies are laid side by side in rows, each seeing the prompt and itself, so that a row costs
as much as its answers and reads the keys of its prompt once for all of them.

Shape letters: G grounds, L columns of a ground, U rows, C copies in a row, S columns of a copy,
R views.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.views import (
    Shapes,
    View,
    canvas_key,
    lay,
    padded,
    power,
    questions,
    round_up,
)

SPAN = 512
"""Columns of a row that copies are laid out in; one copy may be longer."""


class SharedBatch(NamedTuple):
    """The arrays of one model call, of NumPy or of the backend."""

    hidden: Any
    """[G, L] prompts, and answers that are all masks."""
    first: Any
    """[G] column of each ground's first token; those before it are padding."""
    last: Any
    """[G] column behind each ground's last token."""
    start: Any
    """Column of the first answer token of every ground."""
    copies: Any
    """[U, C S] answers with what is hidden in each, side by side."""
    ground: Any
    """[U] the ground of all copies of a row."""
    given: Any
    """[R] the copy of each view, counted through all rows."""
    without: Any
    """[R] its copy with the prompt hidden, for guidance; else the same as `given`."""
    targets: Any
    """[R, S] answer tokens."""
    asked: Any
    """[R, S] whether a token is hidden and asked for."""


def copies_per_row(size: int) -> int:
    """The most copies of `size` columns that are laid side by side."""
    return max(1, SPAN // size)


def ground_key(view: View, hides_prompt: bool) -> bytes:
    """Equal for views whose prompts have the same keys and values."""
    prompt, answer, tail = view.text
    hides_prompt &= len(prompt) > 0
    kind = f"{len(prompt)} {len(answer)} {hides_prompt} "
    return b"".join((kind.encode(), b"" if hides_prompt else prompt.tobytes(), tail.tobytes()))


class _Ground:
    """A ground and the different copies of its answers."""

    def __init__(self, laid: tuple[Any, int, int]):
        self.tokens, self.first, self.last = laid
        self.slots: dict[bytes, int] = {}
        self.copies: list[Any] = []


def pack_shared(
    views: Sequence[View], model: ModelConfig, shapes: Shapes, is_guided: bool = False
) -> tuple[SharedBatch, int]:
    """Lays views out as one call, and says how many different canvases it has."""
    start = max(len(view.text.prompt) for view in views)
    size = round_up(max(len(v.text.answer) + len(v.text.tail) for v in views), shapes.answer)
    length = round_up(start + size, shapes.length)
    grounds: dict[bytes, _Ground] = {}

    def place(view: View, hides_prompt: bool) -> tuple[_Ground, int]:
        base = ground_key(view, hides_prompt)
        if base not in grounds:
            bare = view._replace(is_hidden=np.ones_like(view.is_hidden))
            grounds[base] = _Ground(lay(bare, start, length, model, hides_prompt))
        own, key = grounds[base], canvas_key(view, model.mask_id, hides_prompt)
        if key not in own.slots:
            own.slots[key] = len(own.copies)
            alone = view.text._replace(prompt=view.text.prompt[:0])
            own.copies.append(lay(View(alone, view.is_hidden), 0, size, model)[0])
        return own, own.slots[key]

    given = [place(view, False) for view in views]
    without = [place(view, True) for view in views] if is_guided else given
    most = max(len(own.copies) for own in grounds.values())
    per_row = min(power(most, 2) if shapes.is_padded else most, copies_per_row(size))
    begins, ground, rows = {}, [], []
    for number, own in enumerate(grounds.values()):
        begins[id(own)] = len(rows) * per_row
        for begin in range(0, len(own.copies), per_row):
            part = padded(own.copies[begin : begin + per_row], per_row)
            rows.append(part.reshape(-1))
            ground.append(number)
    every = list(grounds.values())
    laid = [[g.tokens for g in every], [g.first for g in every], [g.last for g in every]]
    count, bases, readings = len(rows), len(grounds), len(views)
    if shapes.is_padded:  # few combinations of numbers, as each of them is compiled
        count = power(count, 2)
        bases = min(power(bases, 4), count)
        readings = max(count * per_row, power(readings, 2))
    targets, asked = questions(views, size)
    places = ([begins[id(own)] + slot for own, slot in x] for x in (given, without))
    batch = SharedBatch._make(
        [
            *(padded(x, bases) for x in laid), start,
            *(padded(x, count) for x in (rows, ground)),
            *(padded(x, readings) for x in (*places, targets, asked)),
        ]
    )  # fmt: skip
    return batch, sum(len(own.copies) for own in every)
