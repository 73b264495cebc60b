"""The curves of a run, read from its metrics.jsonl.

Every logged line may hold any of the keys below; what a run did not log is an empty curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxllada.common.errors import UserError
from jaxllada.common.tracking import read_metrics

LOSS = "loss"
LEARNING_RATE = "learning_rate"
TOKENS = "tokens"
BOUND = "eval_bound"
BOUND_ERROR = "eval_standard_error"
LOSS_BY_RATE = "nll_by_rate"
CLASSES = {"content": "content", "first_eos": "first EOS", "padding_eos": "padding EOS"}
BASELINES = {"uniform_bound": "uniform", "unigram_bound": "unigram"}


@dataclass(frozen=True)
class Curve:
    """Values over steps; both arrays have one length, values may be NaN."""

    steps: Float[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Curves:
    """What one run logged. Losses and bounds are in nats per token.

    `by_rate` holds one curve for each bin of the mask rate, from low to high; `by_class` one for
    each class of answer token that was logged, by its name. `baselines` maps a
    name to a constant. `events` are (step, word) pairs such as a rollback.
    """

    name: str
    loss: Curve
    bound: Curve
    bound_error: Curve
    learning_rate: Curve
    by_rate: tuple[Curve, ...]
    baselines: dict[str, float]
    events: tuple[tuple[float, str], ...]
    tokens_per_step: float | None
    by_class: dict[str, Curve] = field(default_factory=dict)


def read_curves(path: str | Path, name: str = "") -> Curves:
    """Reads a run folder or its metrics.jsonl. Raises UserError when there is nothing to draw."""
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    rows = read_metrics(path)
    loss, bound = _curve(rows, LOSS), _curve(rows, BOUND)
    if not len(loss) and not len(bound):
        raise UserError(f"{path} has no line with '{LOSS}' or '{BOUND}': nothing to draw")
    return Curves(
        name=name or path.resolve().parent.name,
        loss=loss,
        bound=bound,
        bound_error=_curve(rows, BOUND_ERROR),
        learning_rate=_curve(rows, LEARNING_RATE),
        by_rate=_by_rate(rows),
        baselines={
            label: float(row[key]) for row in rows for key, label in BASELINES.items() if key in row
        },
        events=tuple((float(r["step"]), str(r["event"])) for r in rows if "event" in r),
        tokens_per_step=_tokens_per_step(rows),
        by_class={
            label: curve
            for key, label in CLASSES.items()
            if len(curve := _curve(rows, f"{key}_nll"))
        },
    )


def smooth(values: Float[np.ndarray, " N"], reach: int) -> Float[np.ndarray, " N"]:
    """Fits a straight line to `reach` neighbours on both sides and takes its middle.

    At the ends the window is one-sided; a line, unlike a mean, does not bend a slope there. NaN
    does not count.
    """
    if reach < 1:
        return values
    known = np.isfinite(values)
    x, y = np.where(known, np.arange(len(values)), 0.0), np.where(known, values, 0.0)
    sums = np.cumsum(np.pad([known, x, y, x * x, x * y], ((0, 0), (1, 0))), axis=1)
    place = np.arange(len(values))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    n, sx, sy, sxx, sxy = sums[:, high] - sums[:, low]
    count = np.maximum(n, 1)
    spread = sxx - sx * sx / count
    slope = np.where(n > 1, (sxy - sx * sy / count) / np.where(n > 1, spread, 1), 0.0)
    return np.where(n > 0, sy / count + slope * (place - sx / count), np.nan)


def _curve(rows: Sequence[dict[str, Any]], key: str) -> Curve:
    found = [(row["step"], row[key]) for row in rows if _is_number(row.get(key))]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return Curve(steps, values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_rate(rows: Sequence[dict[str, Any]]) -> tuple[Curve, ...]:
    found = [(row["step"], row[LOSS_BY_RATE]) for row in rows if row.get(LOSS_BY_RATE)]
    bins = max((len(values) for _, values in found), default=0)
    steps = np.array([step for step, _ in found], dtype=np.float64)
    return tuple(
        Curve(steps, np.array([_nan(v[i]) if i < len(v) else math.nan for _, v in found]))
        for i in range(bins)
    )


def _nan(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def _tokens_per_step(rows: Sequence[dict[str, Any]]) -> float | None:
    seen = [(row["step"], row[TOKENS]) for row in rows if _is_number(row.get(TOKENS))]
    if not seen or seen[-1][0] <= 0 or not seen[-1][1] > 0:
        return None
    return seen[-1][1] / seen[-1][0]
