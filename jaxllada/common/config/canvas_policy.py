"""How the canvas of an answer is laid out and how it grows: the rules of the option `canvas`.

Rows are finished block by block under every rule. With `fixed` the option `steps` is shared by the
blocks of the whole answer; canvases that change have no whole, nor have prompts with gaps to fill,
so there `steps` counts per block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxllada.common.config.cache import FeatureCache
from jaxllada.common.errors import UserError


@dataclass(frozen=True)
class FixedCanvas:
    """`gen_length` masks stand behind the prompt from the start."""


@dataclass(frozen=True)
class GrowingCanvas:
    """A block of masks is appended whenever the last one is finished, until the answer ends.

    The active block is all of the answer that the model sees ahead. This is block diffusion
    sampling, and autoregressive sampling at block_length=1 (LLaDA, arXiv:2502.09992v3, appendix on
    sampling strategies); `var_generate` of the release that came with iLLaDA.
    """


@dataclass(frozen=True)
class AdaptiveCanvas:
    """Starts short and changes its length, at most `gen_length`, by where the model sees its end.

    Grows until the end is in sight (DAEDAL, arXiv:2508.00819v1), then between blocks by the density
    of predicted end tokens (rho-EOS, arXiv:2601.22527v1): see `common/lengths.py`. Costs one model
    call per decision. For models that fill the rest of an answer with end tokens, as LLaDA does.
    """

    start: int = 64
    """Positions of an answer at first, rounded up to whole blocks."""
    window: int = 32
    """Predicted end tokens, counted from behind, whose confidence is averaged at first."""
    confidence: float = 0.5
    """Mean confidence that shows the end; an answer below it gets another block."""
    low: float = 0.4
    """Share of end tokens among the open positions below which an answer gets more blocks."""
    high: float = 0.6
    """Share above which it gives blocks back."""

    def __post_init__(self) -> None:
        for name in ("start", "window"):
            if getattr(self, name) < 1:
                self._refuse(name, "at least 1")
        for name in ("confidence", "low", "high"):
            if not 0 <= getattr(self, name) <= 1:
                self._refuse(name, "between 0 and 1")
        if self.low > self.high:
            self._refuse("low", f"at most high={self.high:g}")

    def _refuse(self, name: str, expected: str) -> None:
        value: Any = getattr(self, name)
        raise UserError(f"canvas=adaptive: {name}={value} must be {expected}")


CanvasPolicy = FixedCanvas | GrowingCanvas | AdaptiveCanvas

CANVASES: Mapping[str, type[CanvasPolicy]] = {
    "fixed": FixedCanvas,
    "grow": GrowingCanvas,
    "adaptive": AdaptiveCanvas,
}
"""Each rule by the name it has in a specification (`common.config.spec`)."""


def check_canvas(config: Any) -> None:
    """Raises `UserError` for options of a `SamplingConfig` that its canvas cannot have."""
    rule, canvas = config.canvas_rule, f"canvas={config.canvas}"
    if config.infill and not isinstance(rule, FixedCanvas):
        raise UserError(f"{canvas} has no room for infill=true: use canvas=fixed")
    if config.infill and getattr(config.selection_rule, "is_stochastic", False):
        raise UserError(
            f"selection={config.selection} draws when the masks of an answer go, which infill=true"
            " spreads over a prompt: use another selection"
        )
    if config.infill and config.compat is not None:
        raise UserError(
            f"compat={config.compat} fills masks of a prompt in its own way: leave infill=true out"
        )
    if config.start_block_align:
        _check_alignment(config)
    if isinstance(rule, AdaptiveCanvas):
        if config.logits_eos_inf:
            raise UserError(
                f"{canvas} looks for the end token, which logits_eos_inf=true forbids: use one of"
                " them"
            )
        if config.compat is not None:
            raise UserError(
                f"{canvas} is no part of the release that compat={config.compat} repeats: use one"
                " of them"
            )
        if config.attention != "full":
            raise UserError(
                f"{canvas} looks for the end in later blocks, which attention={config.attention}"
                " hides: use canvas=grow"
            )
    if (config.end_think_logit_boost > 0) != bool(config.end_think_token_ids):
        raise UserError(
            f"end_think_logit_boost={config.end_think_logit_boost} and end_think_token_ids="
            f"{list(config.end_think_token_ids)} work together: give both or none"
        )
    if config.end_think_token_ids and config.infill:
        raise UserError(
            "end_think_token_ids and infill=true: gaps of a prompt hold no thoughts; use one of"
            " them"
        )
    if not isinstance(rule, FixedCanvas) and isinstance(config.cache_rule, FeatureCache):
        raise UserError(
            f"{canvas} changes the answer's length, which cache={config.cache} keeps features for:"
            " use canvas=fixed, or another cache such as dual"
        )


def _check_alignment(config: Any) -> None:
    """Raises `UserError` for what blocks on the grid of a row cannot be combined with."""
    clash = ""
    if config.infill:
        clash = "infill=true, which counts blocks from the end of the prompt"
    elif config.compat is not None:
        clash = f"compat={config.compat}, which repeats a release with blocks behind the prompt"
    elif isinstance(config.cache_rule, FeatureCache):
        clash = f"cache={config.cache}, which keeps prompt and answer apart"
    elif config.end_think_token_ids:
        clash = "end_think_token_ids, which count from the end of the prompt"
    if clash:
        raise UserError(f"start_block_align=true and {clash}: use one of them")
