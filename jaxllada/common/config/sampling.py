"""How an answer is sampled: the options of the published sampler (LLaDA, arXiv:2502.09992v3, 2.4).

Names and defaults are those of the released `generate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from jaxllada.common.config.cache import CACHES, BlockCausalCache, Cache
from jaxllada.common.config.candidate import Candidate
from jaxllada.common.config.canvas_policy import (
    CANVASES,
    CanvasPolicy,
    FixedCanvas,
    check_canvas,
)
from jaxllada.common.config.checks import divisors, integer, non_negative, one_of, token_ids
from jaxllada.common.config.selection import SELECTIONS, Selection
from jaxllada.common.config.smoothing import SMOOTHINGS, Smoothing, SoftSmoothing, check_smoothing
from jaxllada.common.config.spec import from_spec, to_spec
from jaxllada.common.errors import UserError

Remasking = Literal["low_confidence", "random"]
Compat = Literal["official-2025"]
Attention = Literal["full", "block_causal"]
_SPECS: dict[str, Mapping[str, Any]] = {
    "selection": SELECTIONS,
    "cache": CACHES,
    "canvas": CANVASES,
    "smoothing": SMOOTHINGS,
}
_AMOUNTS = ("temperature", "cfg_scale", "end_think_logit_boost", "end_think_boost_power")
_ID_LISTS = (
    "stop_token_ids",
    "end_think_token_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "cfg_keep_tokens",
)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Options of one sampling run; everything but the weights, the prompt and the random key.

    Raises `UserError` for a value, or a combination of values, that cannot be run.
    """

    steps: int = 128
    """Model calls for the whole answer, shared equally by the blocks; for one block where the
    canvas changes, and under `infill` or `start_block_align`."""
    gen_length: int = 128
    """Answer length in tokens; the most an answer gets where the canvas changes."""
    block_length: int = 128
    """Tokens per block; blocks are finished from left to right. Must divide `gen_length`."""
    temperature: float = 0.0
    """Gumbel noise added to the logits is scaled by this; 0 picks the most likely token."""
    cfg_scale: float = 0.0
    """Strength w of unsupervised classifier-free guidance (Eq. 16); 0 turns it off."""
    remasking: Remasking = "low_confidence"
    """Which predictions stay masked: the least confident ones, or random ones."""
    logits_eos_inf: bool = False
    """Never predict the end-of-sequence token."""
    confidence_eos_eot_inf: bool = False
    """End tokens may be predicted, but within a block they are committed last."""
    eot_token_id: int | None = None
    """End-of-turn id that `confidence_eos_eot_inf` also holds back; None if the model has none."""
    compat: Compat | None = None
    """`official-2025` repeats the accidental behaviour of the sampler released in October 2025."""
    stop_at_eos: bool = False
    """Stop a row after the block in which it produced its first end-of-sequence token."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that stop a row as the end-of-sequence token does, whatever `stop_at_eos` says."""
    top_p: float | None = None
    """Draw from the most likely tokens only, the first whose probabilities pass this sum."""
    top_k: int | None = None
    """Draw from this many most likely tokens only."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids that are never predicted."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids that may be predicted with no confidence: they are committed last."""
    cfg_keep_tokens: tuple[int, ...] = ()
    """Ids of the prompt that guidance does not hide in its second pass."""
    selection: str = "fixed"
    """Which predictions of a call are kept: fixed[:official|dllm], margin, entropy,
    threshold:0.9, credit:0.9 (threshold with a memory), hierarchy:0.92,0.62 (best of each run of
    masks), factor:1.0, entropy_bound:0.1, or dream:origin|maskgit_plus|topk_margin|entropy.
    Adaptive rules keep what is sure, and leave a block early."""
    cache: str = "none"
    """What is kept of earlier calls: none, prefix, dual, vicinity:16,16,4 (rows before and behind
    the block, warm-up), dllm:50,7,0.25 (intervals of prompt and answer, share in between), or
    block_causal. All but none and block_causal approximate; `refresh=N` as a last value reads
    everything anew every N calls of a block (not for dllm)."""
    attention: Attention = "full"
    """What tokens see: the whole canvas, or no later block, as block-diffusion models learn it."""
    canvas: str = "fixed"
    """How the canvas of the answer is laid out: fixed, grow (block by block until it ends) or
    adaptive[:start,window,confidence,low,high] (as long as the model thinks it should be)."""
    end_think_token_ids: tuple[int, ...] = ()
    """Ids of the text that closes thoughts, such as `</think>`; answers are pulled towards it by
    `end_think_logit_boost` until they hold it."""
    end_think_logit_boost: float = 0.0
    """Added to one logit per call, times (share of `gen_length` that is reached) to the power
    `end_think_boost_power`."""
    end_think_boost_power: float = 2.0
    """How late the boost sets in."""
    infill: bool = False
    """Fill the masks inside prompts, too, block by block from the first one on; gen_length may
    then be 0."""
    smoothing: str = "none"
    """Whether masks remember what earlier calls predicted for them: none, or
    soft[:weight,start,growth,reach] (a share of the expected embedding is added to theirs)."""
    start_block_align: bool = False
    """Blocks begin at multiples of `block_length`, counted from the beginning of a row: the end of
    the prompt shares the first block, and `steps` counts per block. Otherwise the first block
    begins behind the prompt."""

    def __post_init__(self) -> None:
        for name, kinds in _SPECS.items():
            # A dataclass may be given as well; its text is what is kept, compared and written.
            rule = from_spec(name, getattr(self, name), kinds)
            object.__setattr__(self, name, to_spec(rule, kinds))
        one_of("attention", self.attention, get_args(Attention))
        if isinstance(self.cache_rule, BlockCausalCache) and self.attention != "block_causal":
            raise UserError(
                f"cache={self.cache} is for attention=block_causal, which the model must be trained"
                " with: use another cache, or set attention"
            )
        for name in ("steps", "gen_length", "block_length"):
            least = 0 if self.infill and name == "gen_length" else 1
            if integer(name, getattr(self, name)) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in _AMOUNTS:
            non_negative(name, getattr(self, name))
        one_of("remasking", self.remasking, get_args(Remasking))
        if self.compat is not None:
            one_of("compat", self.compat, get_args(Compat))
        for name in _ID_LISTS:
            object.__setattr__(self, name, token_ids(name, getattr(self, name)))
        self._check_selection()
        if self.eot_token_id is not None and integer("eot_token_id", self.eot_token_id) < 0:
            raise UserError(f"eot_token_id={self.eot_token_id} must be a token id or null")
        check_canvas(self)
        check_smoothing(self)
        if self.gen_length % self.block_length:
            raise UserError(
                f"gen_length={self.gen_length} is not a whole number of blocks of"
                f" block_length={self.block_length}; {divisors(self.gen_length)} would be"
            )
        if self.shares_steps and self.steps % self.num_blocks:
            below = self.steps - self.steps % self.num_blocks
            options = [str(n) for n in (below, below + self.num_blocks) if n]
            raise UserError(
                f"steps={self.steps} cannot be shared equally by {self.num_blocks} blocks;"
                f" {' or '.join(options)} can"
            )

    @property
    def is_fixed(self) -> bool:
        """Whether the canvas keeps its length."""
        return isinstance(self.canvas_rule, FixedCanvas)

    @property
    def shares_steps(self) -> bool:
        """Whether `steps` are those of the whole answer."""
        return self.is_fixed and not self.infill and not self.start_block_align

    @property
    def steps_per_block(self) -> int:
        """Steps among which the masks of one block are divided."""
        return self.steps // self.num_blocks if self.shares_steps else self.steps

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole answer; the most it gets where the canvas changes."""
        return self.gen_length // self.block_length

    def _check_selection(self) -> None:
        _ = self.candidate  # checks its own values
        rule = self.selection_rule
        if self.remasking == "random" and (rule.rank != "probability" or rule.extra):
            raise UserError(
                f"remasking=random and selection={self.selection} are two orders of positions:"
                " use remasking=low_confidence with this selection"
            )
        if self.compat is not None and (rule.credit or rule.extra == "hierarchy"):
            raise UserError(
                f"selection={self.selection} is younger than the sampler that compat={self.compat}"
                " repeats: leave compat out"
            )
        if self.cfg_keep_tokens and not self.cfg_scale:
            raise UserError(
                f"cfg_keep_tokens={list(self.cfg_keep_tokens)} is for guidance, which cfg_scale=0"
                " turns off"
            )

    @property
    def candidate(self) -> Candidate:
        """The options of the choice of a token."""
        return Candidate(**{f.name: getattr(self, f.name) for f in fields(Candidate)})

    @property
    def selection_rule(self) -> Selection:
        """`selection`, parsed."""
        return from_spec("selection", self.selection, SELECTIONS)

    @property
    def cache_rule(self) -> Cache:
        """`cache`, parsed."""
        return from_spec("cache", self.cache, CACHES)

    @property
    def canvas_rule(self) -> CanvasPolicy:
        """`canvas`, parsed."""
        return from_spec("canvas", self.canvas, CANVASES)

    @property
    def smoothing_rule(self) -> Smoothing:
        """`smoothing`, parsed."""
        return from_spec("smoothing", self.smoothing, SMOOTHINGS)

    @property
    def reads_ahead(self) -> bool:
        """Whether every call reads the masks of later blocks, too."""
        rule = self.smoothing_rule
        return isinstance(rule, SoftSmoothing) and rule.reach == "canvas"

    @property
    def needs_key(self) -> bool:
        """Whether anything is drawn at random."""
        rule = self.selection_rule
        draws_order = "random" in (self.remasking, rule.rank) or rule.order_temperature > 0
        return self.temperature > 0 or draws_order or rule.is_stochastic
