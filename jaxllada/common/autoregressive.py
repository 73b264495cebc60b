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
from jaxllada.common.engine import ShouldStop
from jaxllada.common.errors import UserError
from jaxllada.common.trace import NOT_COMMITTED, Trace

USED = (
    *("steps", "gen_length", "block_length", "temperature", "logits_eos_inf", "eot_token_id"),
    *("stop_at_eos", "stop_token_ids"),
)
"""Options that are taken. `steps` has to be `gen_length`; `block_length` is 1 in effect."""


class Prompts(NamedTuple):
    """Prompts of a batch, padded on the left."""

    tokens: Int[np.ndarray, "B P"]
    visible: Bool[np.ndarray, "B P"]


def check_options(config: SamplingConfig) -> None:
    """Raises `UserError` for an option that only diffusion samples with, by name."""
    if config.steps != config.gen_length:
        raise UserError(
            f"steps={config.steps}: an autoregressive model makes a call per token; leave steps "
            f"out, or give gen_length={config.gen_length}"
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in USED and value != field.default:
            raise UserError(
                f"{field.name}={value!r} is nothing an autoregressive model takes here: "
                "leave it out"
            )


def end_ids(config: SamplingConfig, model: ModelConfig) -> tuple[int, ...]:
    """Ids that end a row."""
    ends = {model.eos_token_id, config.eot_token_id} - {None} if config.stop_at_eos else set()
    return tuple(sorted(ends | set(config.stop_token_ids)))


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


class Stops:
    """Asks after every block of a run which rows are over, and cuts them there."""

    def __init__(self, should_stop: ShouldStop | None, config: SamplingConfig, rows: int):
        self.should_stop, self.block = should_stop, config.block_length
        self.lengths = np.full(rows, config.gen_length)
        self._asked = 0

    def cut(self, trace: Trace) -> Trace:
        """The record without what rows have behind their ends: end tokens stand there."""
        if self.should_stop is None:
            return trace
        done = min(trace.num_steps, trace.tokens.shape[1])
        while self._asked + self.block <= done:
            self._asked += self.block
            for row, tokens in enumerate(trace.tokens[:, : self._asked].tolist()):
                if self.lengths[row] > self._asked and self.should_stop(tokens):
                    self.lengths[row] = self._asked
        behind = np.arange(trace.tokens.shape[1]) >= self.lengths[:, None]
        last = np.broadcast_to(self.lengths[:, None] - 1, behind.shape).astype(np.int16)
        return dataclasses.replace(
            trace,
            tokens=np.where(behind, trace.mask_token_id, trace.tokens),
            order=np.where(behind, last, trace.order),
            confidence=np.where(behind, 0, trace.confidence),
        )

    @property
    def is_over(self) -> bool:
        """Whether no row goes on."""
        return bool((self.lengths <= self._asked).all())


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
