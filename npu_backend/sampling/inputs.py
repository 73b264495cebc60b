"""The data a sampling run is carried out on.

Shape letters: B rows, G rows of a model call (twice B under guidance), L canvas length.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from jaxllada.common.unmasking import UnmaskingPlan
from npu_backend.sampling.gumbel import RowSeed


@dataclass(frozen=True)
class Inputs:
    """What stays the same during a run."""

    visible: Bool[Tensor, "G L"] | None
    """Keys that may be attended to; None shows everything."""
    turn: Any
    """What `model.rotation` makes of the positions [G, L]."""
    known: Bool[Tensor, "B L"]
    """Prompt positions that guidance hides for the unconditional prediction."""
    seeds: list[RowSeed]
    """Where the random numbers of each row come from."""
    plan: UnmaskingPlan
    prompt_length: int
    temperature: float
    cfg_scale: float
