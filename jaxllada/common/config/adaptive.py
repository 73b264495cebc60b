"""Adaptive selections: a call keeps as many predictions as the model is sure of."""

from dataclasses import dataclass
from typing import Literal

from jaxllada.common.config.rule import Extra, Rank, Rule, non_negative
from jaxllada.common.errors import UserError


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
        non_negative("threshold", self.threshold)
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
            non_negative(name, getattr(self, name))
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
        non_negative("threshold", self.threshold)
        non_negative("low", self.low)
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
        non_negative("factor", self.factor)

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
        non_negative("bound", self.bound)

    @property
    def rank(self) -> Rank:
        return "entropy"

    @property
    def extra(self) -> Extra:
        return "entropy_bound"


def _check_decay(threshold: float, decay: float) -> None:
    non_negative("decay", decay)
    if decay and threshold >= 1:
        raise UserError(
            f"threshold={threshold} leaves decay={decay} nothing to come down to: use a threshold"
            " below 1"
        )
