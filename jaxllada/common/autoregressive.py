"""Answering left to right, as far as it needs no framework: prompts in, the record of a run out.

The options are those of `SamplingConfig` that have a meaning without masks; any other is refused.
Where nothing has been written yet, records and updates hold the end token.

Shape letters: B rows, P prompt length, N answer length.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.trace import NOT_COMMITTED, Trace

USED = (
    *("steps", "gen_length", "block_length", "temperature", "logits_eos_inf", "eot_token_id"),
    "stop_at_eos",
)
"""Options that are taken. `steps` has to be `gen_length`; `block_length` is 1 in effect."""


class Prompts(NamedTuple):
    """Prompts of a batch, padded on the left."""

    tokens: Int[np.ndarray, "B P"]
    visible: Bool[np.ndarray, "B P"]


def check_options(config: SamplingConfig) -> None:
    """Raises `UserError` for an option that only diffusion has, by name."""
    if config.steps != config.gen_length:
        raise UserError(
            f"steps={config.steps}: an autoregressive model makes a call per token; leave steps "
            f"out, or give gen_length={config.gen_length}"
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in USED and value != field.default:
            raise UserError(
                f"{field.name}={value!r} is for diffusion models: leave it out, this model is "
                "autoregressive"
            )


def padded(prompts: Sequence[Sequence[int]], model: ModelConfig, multiple: int = 1) -> Prompts:
    """Lays prompts out behind padding, to a length that is a multiple of `multiple`.

    An empty prompt becomes the token a text begins behind.
    """
    start = getattr(model, "start_id", model.eos_token_id)
    rows = [list(prompt) or [start] for prompt in prompts]
    length = -(-max(map(len, rows)) // multiple) * multiple
    tokens = np.full((len(rows), length), model.pad_token_id, np.int32)
    visible = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        visible[i, length - len(row) :] = True
    return Prompts(tokens, visible)


def record(
    prompts: Prompts,
    tokens: Int[np.ndarray, "B N"],
    confidence: Float32[np.ndarray, "B N"],
    lengths: Int[np.ndarray, " B"],
    steps: int,
    eos_id: int,
) -> Trace:
    """The record of a run after `steps` steps; row i ends after `lengths[i]` tokens."""
    place = np.arange(tokens.shape[1])
    # A row that has stopped is filled with end tokens at once, as in a diffusion run.
    order = np.minimum(place, lengths[:, None] - 1)
    order = np.where(order < steps, order, NOT_COMMITTED).astype(np.int16)
    is_own = (place < lengths[:, None]) & (order != NOT_COMMITTED)
    return Trace(
        prompt=prompts.tokens,
        tokens=np.where(is_own, tokens, eos_id).astype(np.int32),
        order=order,
        confidence=np.where(is_own, confidence, 0).astype(np.float32),
        mask_token_id=eos_id,
    )
