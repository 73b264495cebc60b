"""What the sampler wants to know of every selection: the answers a rule has where it says nothing.

A rule has three parts. It ranks the open positions of the active block; it knows how many of them
every call keeps at least, from the steps of the run; and an adaptive rule keeps those that follow
as long as the model is sure of them. A block is left as soon as it is complete, so `steps` is the
most an adaptive run takes.
"""

import math
from dataclasses import dataclass
from typing import Literal

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
    """A way to select; a subclass answers what is special about it."""

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


def non_negative(name: str, value: float) -> None:
    """Raises UserError for what is no finite number of 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name}={value} must be a finite number, 0 or larger")
