"""How the likelihood of an answer is estimated (LLaDA, arXiv:2502.09992v3, Eq. 6).

Names and defaults are those of the released estimator.
"""

from dataclasses import dataclass

from jaxllada.common.config.sampling import integer, non_negative
from jaxllada.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Options of one estimate; everything but the weights and the tokens.

    Raises `UserError` for a value, or a combination of values, that cannot be run.
    """

    mc_num: int = 128
    """Masks drawn per answer. 1 is exact where the answer is a single token."""
    batch_size: int = 16
    """Masks per model call; their sizes are spread evenly over the answer. Divides `mc_num`."""
    cfg_scale: float = 0.0
    """Strength w of unsupervised classifier-free guidance (Eq. 16); 0 turns it off."""
    seed: int = 0
    """Seed of the masks, where no random key is given: the same masks on every backend."""

    def __post_init__(self) -> None:
        for name in ("mc_num", "batch_size"):
            if integer(name, getattr(self, name)) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        non_negative("cfg_scale", self.cfg_scale)
        if not 0 <= integer("seed", self.seed) < 2**64:
            raise UserError(f"seed={self.seed} must lie in [0, 2**64)")
        if self.mc_num % self.batch_size:
            fitting = max(n for n in range(1, self.batch_size) if self.mc_num % n == 0)
            raise UserError(
                f"mc_num={self.mc_num} cannot be drawn in batches of batch_size={self.batch_size};"
                f" batch_size={fitting} divides it"
            )

    @property
    def num_rounds(self) -> int:
        return self.mc_num // self.batch_size
