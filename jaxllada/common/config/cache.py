"""What a sampler keeps of earlier model calls: the rules of the option `cache`.

All but `none` and `block_causal` approximate: they reuse what was computed for an older canvas.
With every call a refresh, each of them gives the tokens of `none`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxllada.common.errors import UserError


@dataclass(frozen=True)
class NoCache:
    """Every call computes the whole canvas."""


@dataclass(frozen=True)
class PrefixCache:
    """Tokens before the active block keep the keys and values of the block's first call.

    Fast-dLLM (arXiv:2505.22618v3, section 3.2). Every call computes the block and all behind it.
    """

    refresh: int = 0
    """Calls of a block between two that compute the whole canvas; 0: only its first call does."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "refresh")


@dataclass(frozen=True)
class DualCache:
    """Tokens before and behind the active block keep the keys and values of its first call.

    Fast-dLLM (arXiv:2505.22618v3, section 3.2). Every other call computes the block alone.
    """

    refresh: int = 0
    """Calls of a block between two that compute the whole canvas; 0: only its first call does."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "refresh")


@dataclass(frozen=True)
class VicinityCache:
    """As `dual`, but calls compute the neighbourhood of the block too, and start after a warm-up.

    dInfer (arXiv:2510.08666v2, vicinity KV-cache refresh); its published looks and warm-up.
    """

    prefix_look: int = 16
    """Tokens before the block that are computed with it."""
    after_look: int = 16
    """Tokens behind the block that are computed with it."""
    warmup: int = 4
    """First calls of a run, besides the very first, that compute the whole canvas."""
    refresh: int = 0
    """Calls of a block between two that compute the whole canvas; 0: only its first call does."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "prefix_look", "after_look", "warmup", "refresh")


@dataclass(frozen=True)
class FeatureCache:
    """Prompt and answer are computed at their own intervals, and part of the answer in between.

    dLLM-Cache (arXiv:2506.06295v1, section 3); defaults are its setting for GSM8K, instruct. The
    first layer is computed in every call.
    """

    prompt_interval: int = 50
    """Calls between two that compute the prompt."""
    answer_interval: int = 7
    """Calls between two that compute the whole answer."""
    ratio: float = 0.25
    """Share of the answer computed in between: the rows whose values have changed direction most.
    0 computes none of it."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "prompt_interval", "answer_interval")
        if not 0 <= self.ratio <= 1:
            raise UserError(f"cache=dllm:ratio={self.ratio} must lie in [0, 1]")


@dataclass(frozen=True)
class BlockCausalCache:
    """Finished blocks keep their keys and values for good, which is exact.

    For models with `attention: block_causal` only, where no token sees a later block (block
    diffusion, arXiv:2503.09573v3). A finished block is computed once more with its successor.
    """

    refresh: int = 0
    """Calls of a block between two that compute the whole canvas; 0: only the run's first does."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "refresh")


Cache = NoCache | PrefixCache | DualCache | VicinityCache | FeatureCache | BlockCausalCache

CACHES: Mapping[str, type[Any]] = {
    "none": NoCache,
    "prefix": PrefixCache,
    "dual": DualCache,
    "vicinity": VicinityCache,
    "dllm": FeatureCache,
    "block_causal": BlockCausalCache,
}
"""Each rule by the name it has in a specification (`common.config.spec`)."""


def _at_least(rule: Any, lowest: int, *fields: str) -> None:
    name = next(name for name, kind in CACHES.items() if kind is type(rule))
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if field.name in fields and value < lowest:
            raise UserError(f"cache={name}:{field.name}={value} must be at least {lowest}")
