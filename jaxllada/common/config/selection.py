"""Which predictions of a call are kept, and how many: the rules of the option `selection`.

A rule has three parts. It ranks the open positions of the active block; it knows how many of them
every call keeps at least, from the steps of the run; and an adaptive rule keeps those that follow
as long as the model is sure of them. A block is left as soon as it is complete, so `steps` is the
most an adaptive run takes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxllada.common.errors import UserError

Rank = Literal["probability", "margin", "entropy", "random"]
"""What puts positions in order: the probability of the token, its lead over the second most likely
one, the entropy of the prediction (lowest first), or chance."""
Extra = Literal[
    "", "threshold", "relative", "factor", "fast_dllm", "dllm", "entropy_bound", "hierarchy"
]
"""How many positions follow the ones that are kept in any case (`sampling/select.py`)."""
Schedule = Literal["official", "dllm", "dream"]
"""How the masks of a block are divided among its steps (`common/unmasking.py`)."""


@dataclass(frozen=True)
class Rule:
    """What the sampler wants to know of every selection."""

    @property
    def rank(self) -> Rank:
        """Order of the positions."""
        return "probability"

    @property
    def schedule(self) -> Schedule:
        """Division of the masks among the steps."""
        return "official"

    @property
    def is_stochastic(self) -> bool:
        """Whether the number of tokens per call is drawn."""
        return False

    @property
    def extra(self) -> Extra:
        """Rule for positions beyond the number of a call; empty if there are none."""
        return ""

    @property
    def bound(self) -> float:
        """The number that `extra` compares with."""
        return 0.0

    @property
    def decay(self) -> float:
        """How far the number comes down from 1 with every call of a block; 0: it is there."""
        return 0.0

    @property
    def low_bound(self) -> float:
        """The number that the best of each run of masks is compared with, if `extra` has runs."""
        return 0.0

    @property
    def credit(self) -> tuple[float, ...]:
        """How what earlier calls predicted counts, in three numbers; empty: it does not."""
        return ()

    @property
    def order_temperature(self) -> float:
        """Positions are drawn from softmax(rank / this), not sorted; 0 sorts."""
        return 0.0


@dataclass(frozen=True)
class Fixed(Rule):
    """The most confident predictions, a number per call that is fixed in advance."""

    counts: Literal["official", "dllm"] = "official"
    """`official` divides the masks of a block evenly, earlier steps take the remainder; `dllm`
    rounds half of a token to even numbers, step by step, as that library does."""
    stochastic: bool = False
    """Every mask draws its own step, so numbers per call vary (`fixed:dllm,stochastic=true`)."""

    def __post_init__(self) -> None:
        if self.stochastic and self.counts != "dllm":
            raise UserError(f"stochastic=true is for counts=dllm, not counts={self.counts}")

    @property
    def schedule(self) -> Schedule:
        return self.counts

    @property
    def is_stochastic(self) -> bool:
        return self.stochastic


@dataclass(frozen=True)
class Margin(Fixed):
    """As `fixed`, ranked by the lead of the most likely token over the second (top-k margin)."""

    @property
    def rank(self) -> Rank:
        return "margin"


@dataclass(frozen=True)
class Entropy(Fixed):
    """As `fixed`, ranked by the entropy of the prediction."""

    @property
    def rank(self) -> Rank:
        return "entropy"


@dataclass(frozen=True)
class Threshold(Rule):
    """All predictions with at least this confidence (Fast-dLLM, arXiv:2505.22618v3, section 3.3).

    With one step per token this is the published rule; with fewer, every call keeps at least its
    share, as LLaDA2.0 does. Above 1 nothing is added to the fixed number, at 0 a block takes one
    call.
    """

    threshold: float = 0.9
    """Probability of the token."""
    relative: bool = False
    """Also keep what is within 1e-5 of the most confident prediction, as dInfer does
    (arXiv:2510.08666v2)."""
    decay: float = 0.0
    """If not 0, call i of a block compares with max(1 - decay * i, threshold): dInfer's threshold
    of an iteration, which goes with `smoothing` (published: 0.02)."""

    def __post_init__(self) -> None:
        _non_negative("threshold", self.threshold)
        _check_decay(self.threshold, self.decay)

    @property
    def extra(self) -> Extra:
        return "relative" if self.relative else "threshold"

    @property
    def bound(self) -> float:
        return self.threshold


@dataclass(frozen=True)
class Credit(Threshold):
    """As `threshold`, and what a position keeps predicting grows more likely from call to call.

    CreditDecoding (arXiv:2510.06133v2; dInfer, arXiv:2510.08666v2): in every call of a block the
    credits C of a position shrink by `beta`, its most likely token gains p**gamma, and
    alpha * log(1 + C) is added to its logits, from which tokens and confidences are then taken. A
    new block begins without credit.
    """

    alpha: float = 0.7
    """Weight of the credits; 0 would be `threshold`."""
    beta: float = 0.8
    """Share of its credits that a position keeps, 0 to 1."""
    gamma: float = 0.2
    """Power of the probability that is gained; below 1 it helps what is likely but not sure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta", "gamma"):
            _non_negative(name, getattr(self, name))
        if self.alpha == 0:
            raise UserError("alpha=0 gives no credit: use selection=threshold")
        if self.beta > 1:
            raise UserError(f"beta={self.beta} must lie in [0, 1]")

    @property
    def credit(self) -> tuple[float, ...]:
        return self.alpha, self.beta, self.gamma


@dataclass(frozen=True)
class Hierarchy(Rule):
    """The best of every run of masks if it passes `low`, and all that pass the threshold.

    Hierarchical decoding (dInfer, arXiv:2510.08666v2): masks that nothing separates are decided
    apart, so that tokens kept in one call stand far from each other and split the runs for the
    next. The best of all is always kept; the lowest position stands for equals.
    """

    threshold: float = 0.92
    """Probability above which a token is kept wherever it stands."""
    low: float = 0.62
    """Probability above which the best of a run is kept."""
    decay: float = 0.0
    """As that of `threshold`."""

    def __post_init__(self) -> None:
        _non_negative("threshold", self.threshold)
        _non_negative("low", self.low)
        _check_decay(self.threshold, self.decay)
        if self.low > self.threshold:
            raise UserError(
                f"low={self.low} is above threshold={self.threshold}, which keeps all that pass it:"
                " low must be smaller"
            )

    @property
    def extra(self) -> Extra:
        return "hierarchy"

    @property
    def bound(self) -> float:
        return self.threshold

    @property
    def low_bound(self) -> float:
        return self.low


@dataclass(frozen=True)
class Factor(Rule):
    """As many as are jointly sure: the n best while (n + 1)(1 - confidence) <= factor.

    Fast-dLLM (arXiv:2505.22618v3, section 3.3): at most 1, keeping them at once gives the tokens of
    greedy decoding one by one, as long as the confidences are those of the true distribution.
    """

    factor: float = 1.0
    """Larger is bolder."""
    rule: Literal["intended", "fast_dllm", "dllm"] = "intended"
    """`fast_dllm` repeats the released code, which also keeps the last open position of a block if
    that is the first one to fail; `dllm` counts all positions that pass, also behind a failure."""

    def __post_init__(self) -> None:
        _non_negative("factor", self.factor)

    @property
    def extra(self) -> Extra:
        return "factor" if self.rule == "intended" else self.rule

    @property
    def bound(self) -> float:
        return self.factor


@dataclass(frozen=True)
class EntropyBound(Rule):
    """The predictions of least entropy while those before them sum to at most this many nats.

    EB-Sampler (arXiv:2505.24857v1): the sum bounds what is lost by keeping them independently.
    """

    bound: float = 0.1
    """Nats."""

    def __post_init__(self) -> None:
        _non_negative("bound", self.bound)

    @property
    def rank(self) -> Rank:
        return "entropy"

    @property
    def extra(self) -> Extra:
        return "entropy_bound"


@dataclass(frozen=True)
class Dream(Rule):
    """The rules of Dream 7B (arXiv:2508.15487v1) with its schedule, row by row.

    Confidences are those of the distribution that tokens are drawn from, after temperature and
    filters.
    """

    algorithm: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = "entropy"
    """`origin`: every mask draws its step, in random order; the others rank by the probability, the
    margin or the entropy."""
    alg_temp: float = 0.0
    """Temperature of the order: positions are drawn from softmax(rank / alg_temp); 0 sorts."""
    eps: float = 1e-3
    """Time of the last step, which keeps all that is left."""

    _ranks: ClassVar[Mapping[str, Rank]] = {
        "origin": "random",
        "maskgit_plus": "probability",
        "topk_margin": "margin",
        "entropy": "entropy",
    }

    def __post_init__(self) -> None:
        _non_negative("alg_temp", self.alg_temp)
        if not 0 < self.eps < 1:
            raise UserError(f"eps={self.eps} must lie between 0 and 1")
        if self.alg_temp and self.algorithm == "origin":
            raise UserError(
                f"alg_temp={self.alg_temp} orders by confidence, algorithm=origin is in random"
                " order: use one of them"
            )

    @property
    def rank(self) -> Rank:
        return self._ranks[self.algorithm]

    @property
    def schedule(self) -> Schedule:
        return "dream"

    @property
    def is_stochastic(self) -> bool:
        return self.algorithm == "origin"

    @property
    def order_temperature(self) -> float:
        return self.alg_temp


Selection = (
    Fixed | Margin | Entropy | Threshold | Credit | Hierarchy | Factor | EntropyBound | Dream
)

SELECTIONS: Mapping[str, type[Selection]] = {
    "fixed": Fixed,
    "margin": Margin,
    "entropy": Entropy,
    "threshold": Threshold,
    "credit": Credit,
    "hierarchy": Hierarchy,
    "factor": Factor,
    "entropy_bound": EntropyBound,
    "dream": Dream,
}
"""Each rule by the name it has in a specification (`common.config.spec`)."""


def _non_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name}={value} must be a finite number, 0 or larger")


def _check_decay(threshold: float, decay: float) -> None:
    _non_negative("decay", decay)
    if decay and threshold >= 1:
        raise UserError(
            f"threshold={threshold} leaves decay={decay} nothing to come down to: use a threshold"
            " below 1"
        )
