"""Whether masks remember what was predicted for them: the rules of the option `smoothing`.

A mask enters a model call with the embedding of the mask token, whatever earlier calls predicted
there. Iteration smoothing of dInfer (arXiv:2510.08666v2) adds a share of the expected embedding:

    input = E[mask] + w * softmax(logits) @ E,    w = min(start + growth * call, weight)

with the logits of the last call that read the position, and the calls of its block counted from 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxllada.common.config.cache import NoCache
from jaxllada.common.errors import UserError


@dataclass(frozen=True)
class NoSmoothing:
    """Masks enter every call alike."""


@dataclass(frozen=True)
class SoftSmoothing:
    """Masks enter with a share of what was predicted for them; defaults are those of dInfer.

    The prediction is the model's own, under guidance the guided one: before noise, filters and ids
    that are held back. Nothing is remembered of committed tokens.
    """

    weight: float = 0.3
    """Largest share."""
    start: float = 0.15
    """Share after the first call of a block."""
    growth: float = 0.02
    """What every further call of the block adds to it."""
    reach: Literal["block", "canvas"] = "block"
    """Masks that remember: those of the active block, whose logits are there anyway, or all that
    stand on the canvas, for which the head reads them all in every call."""

    def __post_init__(self) -> None:
        for name in ("weight", "start", "growth"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(
                    f"smoothing=soft:{name}={value} must be a finite number, 0 or larger"
                )


Smoothing = NoSmoothing | SoftSmoothing

SMOOTHINGS: Mapping[str, type[Smoothing]] = {"none": NoSmoothing, "soft": SoftSmoothing}
"""Each rule by the name it has in a specification (`common.config.spec`)."""


def check_smoothing(config: Any) -> None:
    """Raises `UserError` for options of a `SamplingConfig` that its smoothing cannot have."""
    rule, smoothing = config.smoothing_rule, f"smoothing={config.smoothing}"
    if not isinstance(rule, SoftSmoothing):
        return
    if config.compat is not None:
        raise UserError(
            f"{smoothing} is no part of the release that compat={config.compat} repeats: use one of"
            " them"
        )
    if rule.reach == "block":
        return
    if not isinstance(config.cache_rule, NoCache):
        raise UserError(
            f"{smoothing} reads masks of later blocks in every call, which cache={config.cache}"
            " does not compute: use reach=block, or cache=none"
        )
    if config.attention != "full":
        raise UserError(
            f"{smoothing} is for masks of later blocks, which attention={config.attention} hides:"
            " use reach=block"
        )
    if config.selection_rule.credit:
        raise UserError(
            f"{smoothing} and selection={config.selection}, which remembers the active block alone:"
            " use reach=block"
        )
    if config.end_think_token_ids:
        raise UserError(
            f"{smoothing} and end_think_token_ids: the pull is for the active block alone; use"
            " reach=block"
        )
