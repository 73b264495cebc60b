"""The course of a sampling run: a device fills whole blocks, the host decides between them.

After a block the host fetches the few tokens there are, ends rows that hold a stop token, takes
finished rows out of the batch, and lets canvases grow or shrink. Where nothing is to be decided the
whole run is one piece. `sampling/generate.py` of a backend implements the protocol; shapes that
change come in few sizes (`common/sizing.py`), so that a compiler sees each of them once.

Shape letters: B rows of the run, R rows on the device, L canvas length, N answer length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxllada.common.answer_rows import Answers
from jaxllada.common.canvas import Canvas, Snapshot
from jaxllada.common.config.canvas_policy import AdaptiveCanvas, GrowingCanvas
from jaxllada.common.engine import ShouldStop
from jaxllada.common.lengths import change_in_blocks, end_confidence, end_density
from jaxllada.common.trace import Trace
from jaxllada.common.unmasking import unmasking_plan

S = TypeVar("S")
NO_LIMIT = int(np.iinfo(np.int32).max)


class Device(Protocol[S]):
    """What a backend does for a run; how it holds a canvas is its own affair."""

    def place(self, canvas: Canvas, placed: S | None) -> S:
        """Starts from a canvas; `placed` is the one its rows come from, None at first."""
        ...

    def advance(self, placed: S, end_block: int, end_step: int) -> S:
        """Runs until that many blocks are finished, or that many calls were made."""
        ...

    def fetch(self, placed: S) -> Snapshot:
        """Waits for the device."""
        ...

    def foresee(self, placed: S) -> tuple[Bool[np.ndarray, "R L"], Float32[np.ndarray, "R L"]]:
        """One model call: where the end token is the likeliest, and how likely it is there.

        Positions that are not open masks of the answer hold anything.
        """
        ...


@dataclass(frozen=True)
class Progress:
    """What there is in the middle of a run."""

    trace: Trace
    nfe: int
    """Model calls of the batch, those that only looked for the end included."""
    columns: int
    """Answer positions that are on a canvas by now; all of them at the end."""
    total_calls: int
    """Most calls the run takes, as far as they commit tokens."""
    blocks_left: int
    """Blocks that the longest unfinished answer has left; 0 at the end."""


def run(
    device: Device[S],
    answers: Answers,
    steps_per_piece: int | None = None,
    should_stop: ShouldStop | None = None,
) -> Iterator[Progress]:
    """Carries all answers to their ends; yields after every `steps_per_piece` calls.

    None yields once after every block where the host decides, and once in all where it does not.
    """
    course = Course(device, answers, should_stop)
    while course.blocks_left:
        course.advance(steps_per_piece)
        columns = answers.columns if course.blocks_left else answers.full_columns
        yield Progress(
            answers.trace(), course.nfe, columns, answers.total_calls, course.blocks_left
        )


class Course(Generic[S]):
    """A run on its way: which rows are on the device, and how far they are."""

    def __init__(self, device: Device[S], answers: Answers, should_stop: ShouldStop | None = None):
        self.device, self.answers, self.should_stop = device, answers, should_stop
        self.policy = answers.config.canvas_rule
        self.stop_ids = answers.stop_ids
        self.rows = np.arange(len(answers.tokens))
        # A single row on a fixed canvas ends on the device, and nothing else can happen to it.
        own_stop = should_stop is not None or bool(answers.config.stop_token_ids)
        can_shrink = bool(answers.stop_ids) and (len(self.rows) > 1 or answers.has_given)
        self.decides = own_stop or can_shrink or not answers.config.is_fixed
        self.batch = len(self.rows)
        self.block = self.step = self.glances = 0
        self.placed = device.place(answers.canvas(self.rows, self.batch, 0, 0), None)
        if isinstance(self.policy, AdaptiveCanvas):
            self._find_lengths(self.policy)

    @property
    def nfe(self) -> int:
        """Model calls so far."""
        return self.step + self.glances

    @property
    def blocks_left(self) -> int:
        """Blocks of the longest answer on the device that are not finished."""
        if not len(self.rows):
            return 0
        return int(self.answers.num_blocks(self.rows).max()) - self.block

    def advance(self, steps: int | None) -> None:
        """Runs a piece, and decides if it ends a block."""
        last = self.block + (1 if self.decides else self.blocks_left)
        end_step = NO_LIMIT if steps is None else self.step + steps
        self.placed = self.device.advance(self.placed, last, end_step)
        snapshot = self.device.fetch(self.placed)
        self.answers.merge(self.rows, snapshot)
        self.step = snapshot.step
        self.block = min(snapshot.block, self.block + self.blocks_left)
        if self.block >= last and self.decides:
            self._decide()

    def _decide(self) -> None:
        """Ends rows, changes lengths, and puts what is left on the device."""
        answers, rows = self.answers, self.rows
        before = answers.lengths[rows].copy()
        for row in rows.tolist():
            if self._is_over(answers.finished_part(row, self.block)):
                answers.end(row, self.block, self.step)
        if isinstance(self.policy, GrowingCanvas):
            answers.lengthen(rows, 1)
        if isinstance(self.policy, AdaptiveCanvas):
            self._adapt(self.policy)
        open_rows = answers.open_rows(rows, self.block)
        for row in np.setdiff1d(rows, open_rows).tolist():
            answers.end(row, self.block, self.step)
        if len(open_rows) < len(rows) or (before != answers.lengths[rows]).any():
            self._place(open_rows)

    def _is_over(self, tokens: Int[np.ndarray, " n"]) -> bool:
        if np.isin(tokens, self.stop_ids).any():
            return True
        own = self.should_stop
        return own is not None and len(tokens) > 0 and own(tokens.tolist())

    def _place(self, rows: Int[np.ndarray, " R"]) -> None:
        self.rows = rows
        if len(rows):
            self.batch = self.answers.sizes.batch(len(rows), self.batch, self._calls_left())
            canvas = self.answers.canvas(rows, self.batch, self.block, self.step)
            self.placed = self.device.place(canvas, self.placed)

    def _calls_left(self) -> int:
        """Most calls that blocks take which the longest answer may yet have."""
        config = self.answers.config
        blocks = -(-self.answers.tokens.shape[1] // config.block_length) - self.block
        return max(0, blocks) * unmasking_plan(config).calls_per_block

    def _find_lengths(self, policy: AdaptiveCanvas) -> None:
        """Adds a block to every answer whose end is not in sight, again and again."""
        answers = self.answers
        while True:
            is_end, _, confidence = self._foresee()
            sure = end_confidence(is_end, confidence, policy.window) >= policy.confidence
            short = self.rows[~sure & (answers.lengths < answers.most)]
            if not len(short):
                return
            answers.lengthen(short, 1)
            self._place(self.rows)

    def _adapt(self, policy: AdaptiveCanvas) -> None:
        """Gives answers that are not over more room or less."""
        answers = self.answers
        rows = answers.open_rows(self.rows, self.block)
        if not len(rows):
            return
        self._place(rows)
        is_end, is_open, _ = self._foresee()
        for row, density in zip(rows, end_density(is_end, is_open), strict=True):
            change = change_in_blocks(density, policy.low, policy.high)
            answers.lengthen(np.array([row]), change, self.block)

    def _foresee(self) -> tuple[Bool[np.ndarray, "R N"], Bool[np.ndarray, "R N"], np.ndarray]:
        """Where rows expect their end, which positions are open, and how likely the end is."""
        is_end, confidence = self.device.foresee(self.placed)
        self.glances += 1
        is_open = self.answers.is_open(self.rows)
        begin = self.answers.begin
        part = (slice(0, len(self.rows)), slice(begin, begin + is_open.shape[1]))
        return is_end[part] & is_open, is_open, confidence[part]
