"""Checks of the prompts that a sampler is given, before anything is compiled.

Shape letters: B rows, P prompt length.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError


def checked_prompt(
    model: ModelConfig, prompt: Any, config: SamplingConfig, attention_mask: Any
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    """Returns int32 tokens, and which of them are seen; `UserError` for what does not fit."""
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
    if len(masks) and config.compat is None and not config.infill:
        row, position = masks[0]
        raise UserError(
            f"prompt row {row} holds the mask id {model.mask_id} at position {position};"
            " infill=true fills masks inside a prompt"
        )
    if len(masks) and not config.is_fixed:
        row, position = masks[0]
        raise UserError(
            f"prompt row {row} holds the mask id {model.mask_id} at position {position}, which"
            f" canvas={config.canvas} does not fill: use canvas=fixed"
        )
    return prompt.astype(np.int32), visible
