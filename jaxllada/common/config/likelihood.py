"""How the likelihood of an answer is estimated (LLaDA, arXiv:2502.09992v3, Eq. 6).

Names and defaults are those of the released estimator; what it does not have is off.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxllada.common.config.checks import integer, non_negative
from jaxllada.common.config.sampling import Attention
from jaxllada.common.errors import UserError, nearest

Method = Literal["monte_carlo", "confidence", "exact"]
Reuse = Literal["none", "prompt", "corrected"]

LONGEST_EXACT = 12
"""Tokens whose 4095 sets of hidden positions may all be written out."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Options of one estimate; everything but the weights and the tokens.

    Raises `UserError` for a value, or a combination of values, that cannot be run.
    """

    mc_num: int = 128
    """Masks drawn per answer, the most with `stop_level`. 1 is exact for an answer of one token."""
    batch_size: int = 16
    """Masks per round; their sizes are spread evenly over the answer. Divides `mc_num`."""
    cfg_scale: float = 0.0
    """Strength w of unsupervised classifier-free guidance (Eq. 16); 0 turns it off."""
    seed: int = 0
    """Seed of the masks, where no random key is given: the same masks on every backend."""
    method: Method = "monte_carlo"
    """monte_carlo: Eq. 6. exact: its expectation, every set of hidden tokens, for short answers.
    confidence: the surest hidden token is scored and shown, again and again; no likelihood."""
    common_random_numbers: bool = True
    """All options of a question hide the same positions, so that errors cancel in differences."""
    stop_level: float = 0.0
    """Stop drawing for a question once its best option is known at this confidence; 0: never."""
    greedy_check: bool = False
    """Also tell whether decoding one surest token at a time gives the answer."""
    padd_eos: bool = False
    """Show an end-of-sequence token behind the answer, as iLLaDA's evaluation does."""
    reuse: Reuse = "none"
    """prompt: keys and values of the prompt come from one pass that hides the whole answer: fast,
    approximate, error reported. corrected: the same, unbiased again by one exact round. Both read
    questions whole that this would not save a third of the work for."""
    attention: Attention = "full"
    """Whether tokens see everything, or no later block, as a model trained so. Blocks count from
    the answer's first token."""
    block_length: int | None = None
    """Tokens of a block of `attention=block_causal`."""
    rows_per_call: int = 0
    """Masked copies per model call, of whichever questions; 0: `batch_size`."""

    def __post_init__(self) -> None:
        for name in ("mc_num", "batch_size"):
            if integer(name, getattr(self, name)) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if integer("rows_per_call", self.rows_per_call) < 0:
            raise UserError(f"rows_per_call={self.rows_per_call} must be 0 or larger")
        non_negative("cfg_scale", self.cfg_scale)
        non_negative("stop_level", self.stop_level)
        for name, kind in (("method", Method), ("reuse", Reuse), ("attention", Attention)):
            known, value = get_args(kind), getattr(self, name)
            if value not in known:
                hint = nearest(str(value), known) or f"; choose from {', '.join(known)}"
                raise UserError(f"{name}={value!r} is unknown{hint}")
        if not 0 <= integer("seed", self.seed) < 2**64:
            raise UserError(f"seed={self.seed} must lie in [0, 2**64)")
        if self.mc_num % self.batch_size:
            fitting = max(n for n in range(1, self.batch_size) if self.mc_num % n == 0)
            raise UserError(
                f"mc_num={self.mc_num} cannot be drawn in batches of batch_size={self.batch_size};"
                f" batch_size={fitting} divides it"
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.attention == "full" and self.block_length is not None:
            raise UserError(
                f"block_length={self.block_length} is for attention=block_causal; leave it out"
            )
        if self.attention == "block_causal" and (
            self.block_length is None or integer("block_length", self.block_length) < 1
        ):
            raise UserError(
                f"attention=block_causal with block_length={self.block_length}: give the block"
                " length that the model was trained with, 1 or more"
            )
        if self.stop_level:
            if not 0.5 <= self.stop_level < 1:
                raise UserError(f"stop_level={self.stop_level} must be 0 or in [0.5, 1)")
            if self.method != "monte_carlo":
                raise UserError(
                    f"stop_level={self.stop_level} with method={self.method}: nothing is drawn,"
                    " so nothing can stop early; use method=monte_carlo"
                )
            if self.num_rounds < 3:
                raise UserError(
                    f"stop_level={self.stop_level} needs 3 rounds: mc_num={self.mc_num} with"
                    f" batch_size={self.batch_size} gives {self.num_rounds}"
                )
        if self.reuse != "none" and self.method == "confidence":
            raise UserError(
                f"reuse={self.reuse} with method=confidence: its error is only measured for"
                " monte_carlo and exact; use reuse=none"
            )
        if self.reuse == "corrected" and (self.stop_level or self.method != "monte_carlo"):
            other = "stop_level" if self.stop_level else "method"
            raise UserError(
                f"reuse=corrected with {other}={getattr(self, other)}: only averages of a fixed"
                " number of masks are corrected; use reuse=prompt"
            )

    @property
    def num_rounds(self) -> int:
        return self.mc_num // self.batch_size

    @property
    def rows(self) -> int:
        """Canvases of one model call."""
        return self.rows_per_call or self.batch_size
