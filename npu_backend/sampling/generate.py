"""Sampling an answer to a prompt: the public entry points.

Shape letters: B rows, P prompt length, N answer length, L canvas length.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from jaxllada.common.answer_rows import lay_out
from jaxllada.common.canvas import Canvas, Snapshot
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.driver import Progress, ShouldStop, run
from jaxllada.common.errors import UserError
from jaxllada.common.policy import Policy
from jaxllada.common.sizing import Sizes
from jaxllada.common.trace import Trace
from npu_backend.calls import draw_seed, inference, on_host
from npu_backend.sampling.carry import carried
from npu_backend.sampling.credit import no_credits
from npu_backend.sampling.foresee import foresee
from npu_backend.sampling.gumbel import RowSeed
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.loop import State, advance, initial_state, open_blocks
from npu_backend.sampling.smoothing import carried_soft

Randomness = torch.Generator | Sequence[RowSeed] | None


def sample(
    model: Any,
    prompt: Any,
    config: SamplingConfig,
    attention_mask: Any = None,
    generator: Randomness = None,
) -> Int[Tensor, "B L"]:
    """Appends `gen_length` masks to the prompt and fills them in `steps` model calls.

    Args:
        model: a `MaskPredictor`; special ids come from its config.
        prompt: token ids [B, P].
        config: the sampler's options.
        attention_mask: [B, P], 1 for prompt tokens, 0 for padding on the left of shorter prompts.
            Rows are placed as if they were alone: the result does not depend on batch mates.
        generator: needed when something is drawn. One number is taken from it, and row i draws
            from (that number, i) on the host, the same on every device; a list of B `RowSeed`s
            names the source of each row. The draws are not those of the JAX sampler.

    Returns:
        int64 prompt and answer [B, P + N] on the model's device, without masks.

    Raises:
        UserError: shapes or ids that do not fit, a generator that is missing, or a mask in the
            prompt. `infill=True` fills these gaps, too. `compat="official-2025"` fills them as the
            release does: they take part in every block and use up its budget, so that masks may be
            left at the end.
    """
    trace = sample_trace(model, prompt, config, attention_mask, generator)
    tokens = np.concatenate([trace.prompt, trace.tokens], axis=1)
    return torch.from_numpy(tokens).long().to(model.device)


def sample_trace(
    model: Any,
    prompt: Any,
    config: SamplingConfig,
    attention_mask: Any = None,
    generator: Randomness = None,
) -> Trace:
    """Like `sample`, and returns the record of every step; `num_steps` model calls were made."""
    pieces = sample_stepwise(model, prompt, config, attention_mask, generator, steps_per_piece=None)
    return list(pieces)[-1]


def sample_stepwise(
    model: Any,
    prompt: Any,
    config: SamplingConfig,
    attention_mask: Any = None,
    generator: Randomness = None,
    *,
    steps_per_piece: int | None = 1,
) -> Iterator[Trace]:
    """Like `sample_trace`, and yields what there is after every `steps_per_piece` steps.

    The same steps are made whatever the size of a piece; None is one piece.
    """
    for progress in sample_progress(
        model, prompt, config, attention_mask, generator, steps_per_piece=steps_per_piece
    ):
        yield progress.trace


def sample_progress(
    model: Any,
    prompt: Any,
    config: SamplingConfig,
    attention_mask: Any = None,
    generator: Randomness = None,
    *,
    steps_per_piece: int | None = None,
    should_stop: ShouldStop | None = None,
    drops_rows: bool = True,
) -> Iterator[Progress]:
    """Like `sample_stepwise`, and tells model calls and canvas lengths too.

    `should_stop` is asked after every block whether a row is finished. Without `steps_per_piece`
    there is a piece after every block where rows may end or lengths change, else one. Rows that are
    over leave the batch; without `drops_rows` they stay in every call, which costs time.
    """
    sizes = Sizes(keeps_rows=not drops_rows)
    answers = lay_out(model.config, on_host(prompt), config, on_host(attention_mask), sizes)
    seeds = _row_seeds(generator, len(answers.tokens), config)
    return run(TorchDevice(model, config, seeds), answers, steps_per_piece, should_stop)


class Placed(NamedTuple):
    """A canvas on the device."""

    inputs: Inputs
    state: State
    policy: Policy
    rows: Int[np.ndarray, " R"]


class TorchDevice:
    """Runs a model on canvases: see `common.driver.Device`."""

    def __init__(self, model: Any, config: SamplingConfig, seeds: list[RowSeed]):
        self.model, self.config, self.seeds = model, config, seeds

    def place(self, canvas: Canvas, placed: Placed | None) -> Placed:
        seeds, device = [self.seeds[row] for row in canvas.rows], self.model.device
        inputs = Inputs.of(canvas, self.config, seeds, device)
        tokens, policy = torch.as_tensor(canvas.tokens, device=device), canvas.policy
        if placed is None or canvas.step == 0:
            state = initial_state(self.model, inputs, tokens, policy)
            state.order = torch.as_tensor(canvas.order, device=device)
            return Placed(inputs, state, policy, canvas.rows)
        own = np.array([np.argmax(placed.rows == row) for row in canvas.rows])
        soft = carried_soft(placed.state.soft, own, tokens.shape[1])
        if policy.is_guided:
            own = np.concatenate([own, own + len(placed.rows)])
        with inference(self.model):
            memory = carried(placed.state.memory, own, tokens.shape[1])
        state = dataclasses.replace(
            placed.state,
            canvas=tokens.long(),
            order=torch.as_tensor(canvas.order, device=device),
            confidence=torch.as_tensor(canvas.confidence, device=device),
            has_ended=torch.zeros(len(canvas.rows), dtype=torch.bool, device=device),
            memory=memory,
            credits=no_credits(len(canvas.rows), policy, device),
            soft=soft,
            open_blocks=open_blocks(inputs, policy, canvas.block),
            call=0,
        )
        return Placed(inputs, state, policy, canvas.rows)

    def advance(self, placed: Placed, end_block: int, end_step: int) -> Placed:
        advance(self.model, placed.inputs, placed.state, end_step, end_block, placed.policy)
        return placed

    def fetch(self, placed: Placed) -> Snapshot:
        state = placed.state
        parts = (state.canvas.int(), state.order, state.confidence)
        arrays = (part.cpu().numpy() for part in parts)
        return Snapshot(*arrays, block=state.block, step=state.step)

    def foresee(self, placed: Placed) -> tuple[np.ndarray, np.ndarray]:
        found = foresee(self.model, placed.inputs, placed.state.canvas, placed.policy)
        is_end, confidence = (part.cpu().numpy() for part in found)
        return is_end, confidence


def _row_seeds(generator: Randomness, rows: int, config: SamplingConfig) -> list[RowSeed]:
    if generator is None:
        if config.needs_key:
            raise UserError(
                f"temperature={config.temperature} with remasking={config.remasking!r} draws"
                " random numbers: pass generator=torch.Generator().manual_seed(seed)"
            )
        return [RowSeed(0, row) for row in range(rows)]
    if isinstance(generator, torch.Generator):
        seed = draw_seed(generator)
        return [RowSeed(seed, row) for row in range(rows)]
    if len(generator) != rows:
        raise UserError(
            f"generator has {len(generator)} seeds; expected one generator, or one seed per row"
            f" ({rows})"
        )
    return list(generator)
