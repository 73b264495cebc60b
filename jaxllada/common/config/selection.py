"""Which predictions of a call are kept, and how many: the rules of the option `selection`.

Those of `common/config/adaptive.py` follow the model; those here follow a plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxllada.common.config.adaptive import Credit, EntropyBound, Factor, Hierarchy, Threshold
from jaxllada.common.config.rule import Rank, Rule, Schedule, non_negative
from jaxllada.common.errors import UserError


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
        non_negative("alg_temp", self.alg_temp)
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
