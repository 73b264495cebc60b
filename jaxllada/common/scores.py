"""Questions with options, their scores, and when it is known which option is best.

Sampling of one question may stop once its best option is known. After every round (from the third
on) the round means of the leader and of each contender are compared pair by pair, with Student's t:
their masks are common, so most of the error cancels. The chance of a wrong decision is shared
equally by all comparisons that may be made (Bonferroni), so that however often one looks, the
option found best is that of the full estimate except with probability 1 - level, as far as round
means are normal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxllada.common.views import Text

FIRST_LOOK = 3
"""Rounds before the first decision."""


@dataclass(frozen=True)
class Question:
    """A prompt and the answers that compete, as token ids."""

    prompt: Sequence[int]
    options: tuple[Sequence[int], ...]
    divisors: tuple[float, ...] | None = None
    """Lengths (tokens, characters or bytes) for a second ranking, by value per length."""
    number: int | None = None
    """What its masks are drawn by; None: its place in the list. Questions of one number share
    masks."""


@dataclass(frozen=True)
class Score:
    """The estimate for one option."""

    value: float
    """Nats; for `monte_carlo` and `exact` a bound on log p(answer | prompt)."""
    stderr: float
    """Standard error of `value` as an estimate of its expectation; 0 where nothing is drawn, NaN
    where a single mask tells nothing of it."""
    n: int
    """Masks averaged."""
    nfe: int
    """Canvases shown to the model for it, both passes of guidance; equal masks count once."""
    seconds: float
    """Wall time, shared out by `nfe`."""
    is_greedy: bool | None = None
    """Whether decoding one surest token at a time gives the answer; None if not asked."""
    reuse_error: float | None = None
    """Nats that `reuse` adds to the value, measured on one round; None where nothing is reused,
    as for questions that reading whole is hardly more work for."""
    reuse_stderr: float | None = None
    """Standard error of `reuse_error`."""


@dataclass(frozen=True)
class QuestionScores:
    """The scores of a question's options, in their order."""

    options: tuple[Score, ...]
    best: int
    """The option of the largest value among those still in the running; the first of equals."""
    best_divided: int
    """The same for values divided by `Question.divisors`."""
    is_decided: bool | None = None
    """Whether both rankings were decided at `stop_level`; None without it."""


@dataclass
class OpenOption:
    """One answer while it is scored."""

    text: Text
    drawing: int
    number: int
    rounds: list[np.ndarray] = field(default_factory=list)
    """Values of Eq. 6, a row of each mask; of an exact value, that alone."""
    is_exact: bool = False
    n: int = 0
    nfe: int = 0
    is_greedy: bool | None = None
    error: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        return len(self.text.answer)

    @property
    def value(self) -> float:
        return float(np.mean(np.concatenate(self.rounds)))

    def means(self) -> np.ndarray:
        return np.array([np.mean(values) for values in self.rounds])


class Race:
    """Which options of one question may still be best, by one ranking."""

    def __init__(self, num_options: int, divisors: Sequence[float], level: float, num_looks: int):
        self.open = list(range(num_options))
        self.divisors = divisors
        comparisons = max(1, (num_options - 1) * num_looks)
        self._tail = (1 - level) / comparisons

    def look(self, means: Callable[[int], np.ndarray]) -> None:
        """Drops options that are known to be worse; `means(option)` are its round means so far.

        Options without error return one mean that counts for every round.
        """
        leader = self.leader(means)
        left = [leader]
        for option in self.open:
            if option == leader:
                continue
            lead = means(leader) / self.divisors[leader] - means(option) / self.divisors[option]
            rounds = np.size(lead)
            if rounds == 1:  # both are exact
                if lead <= 0:
                    left.append(option)
                continue
            spread = np.std(lead, ddof=1) / math.sqrt(rounds)
            bar = student_quantile(1 - self._tail, rounds - 1)
            if not (spread > 0 and np.mean(lead) > bar * spread):
                left.append(option)
        self.open = sorted(left)

    def leader(self, means: Callable[[int], np.ndarray]) -> int:
        """The open option of the largest mean, the first of equals."""
        return max(self.open, key=lambda i: (np.mean(means(i)) / self.divisors[i], -i))


def standard_error(rounds: Sequence[np.ndarray], is_exact: bool = False) -> float:
    """Standard error of the mean of all values, given by rounds of equal size.

    Rounds are independent, the rows of one round are not: their sizes are spread evenly. With a
    single round, rows are taken as independent, which overestimates.
    """
    if is_exact:
        return 0.0
    values = [np.mean(r) for r in rounds] if len(rounds) > 1 else rounds[0]
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def student_probability(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t with a whole number of degrees of freedom.

    The finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(freedom))
    term, total = (1.0, 0.0) if freedom % 2 == 0 else (math.cos(theta), 0.0)
    for k in range(1 if freedom % 2 == 0 else 2, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(theta) ** 2
    if freedom % 2 == 0:
        inside = math.sin(theta) * total
    else:
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    return 0.5 + inside / 2


def student_quantile(probability: float, freedom: int) -> float:
    """The t (0 or larger) with P(T <= t) = probability, for probabilities in [0.5, 1)."""
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability and high < 1e9:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        is_below = student_probability(middle, freedom) < probability
        low, high = (middle, high) if is_below else (low, middle)
    return high
