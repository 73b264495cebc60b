"""How the token of an open position is chosen, and what stands for its confidence.

The part of `SamplingConfig` that looks at one prediction; `selection` compares predictions.
"""

import math
from dataclasses import dataclass

from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Options of the choice of a token; each is a key of `SamplingConfig` as well."""

    temperature: float = 0.0
    """Scale of the Gumbel noise on the logits."""
    top_p: float | None = None
    """Nucleus: the most likely tokens until their sum passes this."""
    top_k: int | None = None
    """Number of most likely tokens to draw from."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids that are never predicted."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids without confidence."""
    cfg_keep_tokens: tuple[int, ...] = ()
    """Ids of the prompt that guidance does not hide."""
    logits_eos_inf: bool = False
    """Never predict the end-of-sequence token."""
    confidence_eos_eot_inf: bool = False
    """Commit end tokens last."""

    def __post_init__(self) -> None:
        top_p, top_k = self.top_p, self.top_k
        if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
            raise UserError(f"top_p={top_p!r} must be above 0 and at most 1, or null")
        if top_k is not None and not (_is_number(top_k) and top_k >= 1 and int(top_k) == top_k):
            raise UserError(f"top_k={top_k!r} must be a whole number, at least 1, or null")

    @property
    def has_top_p(self) -> bool:
        """Whether `top_p` leaves anything out."""
        return self.top_p is not None and self.top_p < 1

    @property
    def has_top_k(self) -> bool:
        """Whether `top_k` is given."""
        return self.top_k is not None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and value is not True and math.isfinite(value)
