"""Requests of an evaluation: laid out in groups that are answered together, and kept as they come.

Groups are laid out before the first answer and hold the same requests in every process, whatever is
already answered, so a run that was cut or shared out meets the same batches as one that was not.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from tqdm import tqdm

from jaxllada.apps.evaluation.answers_kept import KeptAnswers, Record
from jaxllada.apps.evaluation.ranks import Part
from jaxllada.apps.evaluation.report import Cost
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.engine import Engine
from jaxllada.common.notices import notice

TooLong = Literal["error", "cut", "shorten"]
LINES = 30.0
"""Seconds between two lines of progress where no bar can be drawn."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How requests are answered."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `SamplingConfig` that are set; a task and then the verbs' defaults fill the rest."""
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    add_bos: bool = False
    """Begin every text of a likelihood with the beginning-of-sequence token."""
    keeps_blanks: bool = False
    """Contexts come from a chat template: the blanks they end in are part of it."""
    seed: int = 0
    batch_size: int = 8
    """Answers generated at the same time."""
    too_long: TooLong = "error"
    """What happens where a prompt leaves too little room: nothing is run, its front is cut off, or
    the answer is shortened to as many blocks as fit."""


class Request(NamedTuple):
    """One thing to ask an engine."""

    key: str
    """Hash of all that determines the answer."""
    ask: Any


class Work(Protocol):
    """Requests of one kind for one model."""

    groups: list[list[Request]]
    """Those that are answered together; no key twice."""
    keys: list[tuple[str, ...]]
    """For every instance of the harness, the answers that its result is made of."""
    seconds: float
    """Time that `answer` took for these requests in this process."""

    def answer(self, engine: Engine, requests: Sequence[Request]) -> dict[str, Record]:
        """Asks the engine; one record for each request."""
        ...

    def result(self, number: int, kept: KeptAnswers) -> Any:
        """What the harness gets for instance `number`."""
        ...


def answer(
    works: Sequence[Work], engine: Engine, kept: KeptAnswers, part: Part | None = None
) -> None:
    """Answers the groups of a part (default: all) that are not kept yet."""
    mine = [(work, group) for work, group, owner in _owned(works, part) if owner]
    total = sum(len(group) for _, group in mine)
    open_groups = [(w, [r for r in group if r.key not in kept]) for w, group in mine]
    left = sum(len(group) for _, group in open_groups)
    with _Progress(total, total - left) as progress:
        for work, requests in open_groups:
            # An equal request may have been answered since, for another task.
            requests = [request for request in requests if request.key not in kept]
            if requests:
                begun = time.perf_counter()
                kept.add(work.answer(engine, requests))
                work.seconds += time.perf_counter() - begun
            progress.add(len(requests))


def missing(works: Sequence[Work], kept: KeptAnswers, count: int = 1) -> dict[int, int]:
    """Open requests by the part, of `count`, that owes them; reads what others have written."""
    kept.refresh()
    owed: dict[int, int] = {}
    for number, group in enumerate(group for work in works for group in work.groups):
        if lacking := sum(request.key not in kept for request in group):
            owed[number % count] = owed.get(number % count, 0) + lacking
    return owed


def _owned(works: Sequence[Work], part: Part | None) -> list[tuple[Work, list[Request], bool]]:
    groups = [(work, group) for work in works for group in work.groups]
    return [(w, group, part is None or part.owns(i)) for i, (w, group) in enumerate(groups)]


def keys_of(works: Sequence[Work]) -> list[str]:
    """The keys of all answers that some works need, once each."""
    return list(dict.fromkeys(k for work in works for several in work.keys for k in several))


def cost(works: Sequence[Work], kept: KeptAnswers, found: int, wall_seconds: float) -> Cost:
    """What the answers of some works took; each counts once, also where it is used several times.

    `found` of them were there before this process began.
    """
    records = [kept[key] for key in keys_of(works)]
    texts = [record for record in records if "text" in record]
    scores = [record for record in records if "text" not in record]
    return Cost(
        requests=len(records),
        kept=found,
        answers=len(texts),
        # The calls of a batch are shared by its rows.
        model_calls=round(sum(record["nfe"] / record["rows"] for record in texts)),
        answer_calls=sum(record["nfe"] for record in texts),
        canvases=sum(record["nfe"] for record in scores),
        response_tokens=sum(record["tokens"] for record in texts),
        sampling_seconds=sum(record["seconds"] for record in texts),
        scoring_seconds=sum(record["seconds"] for record in scores),
        wall_seconds=wall_seconds,
    )


class _Progress:
    """Counts answers: a bar on a terminal, a line from time to time elsewhere."""

    def __init__(self, total: int, found: int):
        self.total, self.found, self.done = total, found, 0
        self._begun = self._told = time.monotonic()
        self._bar = None
        if found:
            notice(f"{found} of {total} answers were kept by an earlier run")

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty() and self.done + self.found < self.total:
            self._bar = tqdm(total=self.total, initial=self.found, unit="answer", smoothing=0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now, done = time.monotonic(), self.found + self.done
        if self.done and (now - self._told > LINES or done == self.total):
            self._told = now
            left = (self.total - done) * (now - self._begun) / self.done
            notice(f"{done} of {self.total} answers, left {tqdm.format_interval(int(left))}")
