"""Learning-rate schedules as plain functions of the step (LLaDA, arXiv:2502.09992v3, section 2.2).

The rate is computed on the host and handed to the compiled step as a number, so that a rollback can
scale it without compiling again. `step` counts finished updates: the first update has step 0.
"""

import dataclasses
import math
import re
from bisect import bisect_right
from typing import Any

from jaxllada.common.errors import UserError

_TOKEN_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclasses.dataclass(frozen=True)
class Segment:
    """A straight piece of a schedule: from rate `first` towards `last`, reached at step `end`."""

    end: int
    first: float
    last: float


def parse_segments(text: str, *, tokens_per_step: int) -> tuple[Segment, ...]:
    """Reads `END: rate; END: from -> to; ...`, where END counts steps or (K, M, B, T) tokens.

    Token counts become steps by rounding; each segment starts where the one before ended.
    """
    segments: list[Segment] = []
    for piece in filter(None, (part.strip() for part in text.split(";"))):
        match = re.fullmatch(r"([\d._]+)\s*([KMBT]?)\s*:\s*(\S+)(?:\s*->\s*(\S+))?", piece)
        try:
            count, unit, first, last = match.groups() if match else ("", "", "", "")
            end = round(float(count) * _TOKEN_UNITS[unit] / tokens_per_step if unit else int(count))
            segment = Segment(end, float(first), float(last or first))
        except ValueError:
            raise UserError(
                f"lr_segments={piece!r}: expected 'END: rate' or 'END: from -> to', "
                "END in steps or in tokens with K, M, B or T"
            ) from None
        if segment.end <= (segments[-1].end if segments else 0):
            raise UserError(f"lr_segments={piece!r}: expected an END after the one before")
        if not all(0 <= rate < math.inf for rate in (segment.first, segment.last)):
            raise UserError(f"lr_segments={piece!r}: expected rates of 0 or more")
        segments.append(segment)
    if not segments:
        raise UserError("lr_segments='': expected at least one segment")
    return tuple(segments)


def segment_rate(segments: tuple[Segment, ...], step: int) -> float:
    """Rate of a piecewise linear schedule; after the end its last rate stays."""
    which = bisect_right([segment.end for segment in segments], step)
    if which == len(segments):
        return segments[-1].last
    start = segments[which - 1].end if which else 0
    segment = segments[which]
    share = (step - start) / (segment.end - start)
    return segment.first + share * (segment.last - segment.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning-rate schedule over `total_steps` updates; call it with a step.

    Warm-up rises from 0 at step 0 to `peak` at `warmup_steps`. Then `constant` stays; `linear` and
    `cosine` fall to `floor` at `total_steps`; `wsd` stays and falls linearly over `decay_steps`.
    `segments` is the piecewise linear schedule of `segments` alone.
    """

    kind: str
    peak: float
    total_steps: int
    warmup_steps: int = 0
    decay_steps: int = 0
    floor: float = 0.0
    segments: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "segments":
            return
        if self.warmup_steps + self.decay_steps > self.total_steps and self.kind == "wsd":
            raise UserError(
                f"lr_decay_ratio: {self.warmup_steps} steps of warm-up and {self.decay_steps} of "
                f"decay do not fit into {self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        if self.kind == "segments":
            return segment_rate(self.segments, step)
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        start = self.total_steps - self.decay_steps if self.kind == "wsd" else self.warmup_steps
        if step < start:
            return self.peak
        share = min(1.0, (step - start) / max(1, self.total_steps - start))
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.peak + share * (self.floor - self.peak)


_NAMED = {
    # LLaDA, arXiv:2502.09992v3, section 2.3: 50 iterations, constant, the last 10 % to a tenth.
    "llada-sft": {"lr_scheduler_type": "wsd", "lr_decay_ratio": 0.1, "min_lr_ratio": 0.1},
    "dllm": {"lr_scheduler_type": "cosine"},
}
_LLADA_WARMUP = 50


def plain_schedule(config, total_steps: int):
    """Returns the settings with a named schedule spelt out."""
    name = config.lr_scheduler_type
    if name not in _NAMED:
        return config
    changes: dict[str, Any] = dict(_NAMED[name])
    if not (config.warmup_steps or config.warmup_ratio):
        tenth = math.ceil(0.1 * total_steps)
        changes["warmup_steps"] = min(_LLADA_WARMUP, tenth) if name == "llada-sft" else tenth
    return dataclasses.replace(config, **changes)


def learning_rate_schedule(config, *, total_steps: int, tokens_per_step: int) -> Schedule:
    """Builds the schedule a `TrainConfig` asks for."""
    config = plain_schedule(config, total_steps)
    return Schedule(
        kind=config.lr_scheduler_type,
        peak=config.learning_rate,
        total_steps=total_steps,
        warmup_steps=config.warmup_steps or math.ceil(config.warmup_ratio * total_steps),
        decay_steps=math.ceil(config.lr_decay_ratio * total_steps),
        floor=config.min_lr_ratio * config.learning_rate,
        segments=parse_segments(config.lr_segments, tokens_per_step=tokens_per_step)
        if config.lr_segments
        else (),
    )
