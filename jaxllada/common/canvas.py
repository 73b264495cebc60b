"""The canvas a sampler works on, laid out on the host: prompt, masks to fill, padding.

Shape letters: B rows, P prompt length, N answer length, L canvas length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.policy import Policy
from jaxllada.common.trace import Trace


@dataclass(frozen=True)
class Canvas:
    """What a run starts from."""

    tokens: Int[np.ndarray, "B L"]
    """int32: prompt, masks, and end tokens that nobody sees up to the length."""
    visible: Bool[np.ndarray, "B L"]
    """Keys that may be attended to."""
    positions: Int[np.ndarray, "B L"]
    """int32 rotary positions."""
    prompt_length: int
    gen_length: int
    policy: Policy

    def trace(
        self,
        tokens: Int[np.ndarray, "B L"],
        order: Int[np.ndarray, "B L"],
        confidence: Float32[np.ndarray, "B L"],
    ) -> Trace:
        """The record of a run that has come to these tokens."""
        answer = slice(self.prompt_length, self.prompt_length + self.gen_length)
        return Trace(
            prompt=tokens[:, : self.prompt_length],
            tokens=tokens[:, answer],
            order=order[:, answer].astype(np.int16),
            confidence=confidence[:, answer],
            mask_token_id=self.policy.mask_id,
        )

    def is_finished(self, trace: Trace) -> bool:
        """Whether nothing is left to fill; with masks in a prompt that is for the plan to say."""
        return not self.policy.fills_prompt and not (trace.tokens == self.policy.mask_id).any()


def lay_out(
    model: ModelConfig,
    prompt: Any,
    config: SamplingConfig,
    attention_mask: Any = None,
    multiple: int = 1,
) -> Canvas:
    """Checks a prompt and puts `gen_length` masks behind it.

    Args:
        model: ids and number of embedding rows.
        prompt: token ids [B, P].
        config: the sampler's options.
        attention_mask: [B, P], 1 for tokens, 0 for padding on the left; None: all are tokens.
        multiple: the length is rounded up to this.

    Raises:
        UserError: shapes or ids that do not fit, or a mask in the prompt without `compat`.
    """
    prompt, visible = _checked_prompt(model, prompt, config, attention_mask)
    end = prompt.shape[1] + config.gen_length
    length = -(-end // multiple) * multiple
    tokens = np.full((len(prompt), length), model.eos_token_id, np.int32)
    tokens[:, : prompt.shape[1]] = prompt
    tokens[:, prompt.shape[1] : end] = model.mask_id
    fills_prompt = config.compat is not None and bool((prompt == model.mask_id).any())
    visible = _extended(visible, config.gen_length, length)
    return Canvas(
        tokens=tokens,
        visible=visible,
        positions=_positions(visible),
        prompt_length=prompt.shape[1],
        gen_length=config.gen_length,
        policy=Policy.of(config, model, length if fills_prompt else config.block_length),
    )


def _checked_prompt(
    model: ModelConfig, prompt: Any, config: SamplingConfig, attention_mask: Any
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    prompt = np.asarray(prompt)
    if prompt.ndim != 2 or not len(prompt):
        raise UserError(f"prompt has shape {prompt.shape}; expected [rows, tokens]")
    if not np.issubdtype(prompt.dtype, np.integer) and prompt.size:
        raise UserError(f"prompt has type {prompt.dtype}; expected integer token ids")
    visible = np.ones(prompt.shape, bool)
    if attention_mask is not None:
        visible = np.asarray(attention_mask) != 0
        if visible.shape != prompt.shape:
            raise UserError(
                f"attention_mask has shape {visible.shape}; expected {prompt.shape} as the prompt"
            )
    wrong = np.argwhere((prompt < 0) | (prompt >= model.rows))
    if len(wrong):
        row, position = wrong[0]
        raise UserError(
            f"prompt row {row} holds id {prompt[row, position]} at position {position},"
            f" outside the {model.rows} rows of the embedding"
        )
    masks = np.argwhere((prompt == model.mask_id) & visible)
    if len(masks) and config.compat is None:
        row, position = masks[0]
        raise UserError(
            f"prompt row {row} holds the mask id {model.mask_id} at position {position};"
            ' only compat="official-2025" fills masks inside a prompt'
        )
    return prompt.astype(np.int32), visible


def _extended(
    visible: Bool[np.ndarray, "B P"], gen_length: int, length: int
) -> Bool[np.ndarray, "B L"]:
    """The answer is visible, the padding on its right is not."""
    extended = np.zeros((len(visible), length), bool)
    extended[:, : visible.shape[1]] = visible
    extended[:, visible.shape[1] : visible.shape[1] + gen_length] = True
    return extended


def _positions(visible: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B L"]:
    """Rotary positions that start at each row's first visible token, as if it were alone.

    Attention depends on distances only, so this equals the release, which counts the padding, up
    to rounding; and here the rounding is that of the row's own run. Holes keep their places.
    """
    places = np.arange(visible.shape[1]) - visible.argmax(axis=1)[:, None]
    return np.maximum(places, 0).astype(np.int32)
