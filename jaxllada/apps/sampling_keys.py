"""The sampling keys of the verbs that generate text: a preset, and what is given beside it.

A key that is not given is null here; then the preset decides, and where it says nothing the default
of the verb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jaxllada.common.config.sampling import Compat, Remasking, SamplingConfig
from jaxllada.common.config.sampling_presets import sampling_preset
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.tokenizer import Tokenizer

USUAL_BLOCK = 32
END_THINK = "</think>"


@dataclass(frozen=True, kw_only=True)
class SamplingKeys:
    """How answers are sampled."""

    preset: str = ""
    """Settings to start from: a published task such as gsm8k or gsm8k@llada-1.5 (`presets` lists
    them), or a YAML file such as `tune` writes. Keys given beside it win."""
    gen_length: int | None = None
    """Answer length in tokens; 128, or the largest power of two the context has room for."""
    max_length: int | None = None
    """Another name for gen_length."""
    steps: int | None = None
    """Model calls for the whole answer, for one block where the canvas changes; one per token by
    default."""
    block_length: int | None = None
    """Tokens per block; 32 if that divides the answer, else the whole answer."""
    temperature: float | None = None
    """Scale of the Gumbel noise on the logits; 0, the default, picks the most likely tokens."""
    cfg_scale: float | None = None
    """Strength of unsupervised classifier-free guidance; 0, the default, is twice as fast."""
    remasking: Remasking | None = None
    """Which predictions stay masked: low_confidence ones (default) or random ones."""
    logits_eos_inf: bool | None = None
    """Never predict the end-of-sequence token."""
    confidence_eos_eot_inf: bool | None = None
    """Commit end tokens last within a block."""
    compat: Compat | None = None
    """official-2025 repeats the accidental behaviour of the released sampler."""
    stop_at_eos: bool | None = None
    """Stop after the block that holds the first end-of-sequence token; true by default."""

    stop_token_ids: tuple[int, ...] | None = None
    """Ids that stop an answer as the end-of-sequence token does."""
    top_p: float | None = None
    """Draw from the most likely tokens only, the first whose probabilities pass this sum."""
    top_k: int | None = None
    """Draw from this many most likely tokens only."""
    suppress_tokens: tuple[int, ...] | None = None
    """Ids that are never predicted."""
    begin_suppress_tokens: tuple[int, ...] | None = None
    """Ids that may be predicted with no confidence: they are committed last."""
    cfg_keep_tokens: tuple[int, ...] | None = None
    """Ids of the prompt that guidance does not hide in its second pass."""
    selection: str | None = None
    """Which predictions of a call are kept: fixed (default), margin, entropy, threshold:0.9,
    credit:0.9, hierarchy:0.92,0.62, factor:1.0, entropy_bound:0.1, or
    dream:origin|maskgit_plus|topk_margin|entropy."""
    cache: str | None = None
    """What is kept of earlier model calls: none (default), prefix, dual, vicinity, dllm, or
    block_causal."""
    end_think_token_ids: tuple[int, ...] | None = None
    """Ids of the text that closes thoughts; those of </think> by default where a boost is set."""
    end_think_logit_boost: float | None = None
    """Pulls answers towards that text until they hold it; 0, the default, does not."""
    end_think_boost_power: float | None = None
    """How late in the answer the boost sets in; 2 by default."""
    infill: bool | None = None
    """Fill the masks inside the prompts, each written as the tokenizer writes it, such as
    <|mdm_mask|>; gen_length is then 0 by default and steps counts per block."""
    attention: Literal["full", "block_causal"] | None = None
    """Whether tokens see the whole canvas (default), or no later block, as a model trained so."""
    canvas: str | None = None
    """How the answer is laid out: fixed (default), grow (block by block until it ends) or adaptive
    (as long as the model thinks it should be). Where it changes, steps counts per block."""
    smoothing: str | None = None
    """Whether masks remember what was predicted for them: none (default), or
    soft[:weight,start,growth,reach], such as soft:0.3,reach=canvas."""
    start_block_align: bool | None = None
    """Blocks begin at multiples of block_length in each row, so that the end of the prompt shares
    the first one; steps then counts per block."""

    def __post_init__(self) -> None:
        self.check_names()
        self.sampling(room=128)

    def check_names(self) -> None:
        """Raises `UserError` where one setting is given by two names."""
        if None not in (self.gen_length, self.max_length) and self.gen_length != self.max_length:
            raise UserError(
                f"gen_length={self.gen_length} and max_length={self.max_length} are two names of"
                " one setting: give one of them"
            )

    def given(self) -> dict[str, Any]:
        """The keys of `SamplingConfig` that the preset and the user set."""
        values = sampling_preset(self.preset) if self.preset else {}
        for key in fields(SamplingConfig):
            value = getattr(self, key.name, None)
            if value is not None:
                values[key.name] = value
        if self.max_length is not None:
            values["gen_length"] = self.max_length
        return values

    def sampling(self, room: int, tokenizer: "Tokenizer | None" = None) -> SamplingConfig:
        """The sampler's options for a context that has `room` for an answer.

        Without the tokenizer, the ids that depend on it are stand-ins: good for checks alone.
        """
        return completed(self.given(), room, tokenizer)


def completed(
    given: Mapping[str, Any], room: int, tokenizer: "Tokenizer | None" = None
) -> SamplingConfig:
    """The sampler's options where some keys are `given`: the others are the verbs' defaults."""
    values = {"stop_at_eos": True, "eot_token_id": tokenizer and tokenizer.eot_id, **given}
    if values.get("end_think_logit_boost"):
        closing = tokenizer.encode(END_THINK) if tokenizer else [0]
        values.setdefault("end_think_token_ids", tuple(closing))
    fits = 0 if values.get("infill") else min(128, 2 ** (max(1, room).bit_length() - 1))
    length = values.setdefault("gen_length", fits)
    values.setdefault("block_length", USUAL_BLOCK if length % USUAL_BLOCK == 0 else length)
    per_run = values.get("canvas", "fixed") == "fixed"
    per_run = per_run and not (values.get("infill") or values.get("start_block_align"))
    values.setdefault("steps", length if per_run else values["block_length"])
    return SamplingConfig(**values)
