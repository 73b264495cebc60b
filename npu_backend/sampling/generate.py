"""Sampling an answer to a prompt: the public entry points.

Shape letters: B rows, P prompt length, N answer length, L canvas length.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from jaxllada.common.canvas import Canvas, lay_out
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.trace import Trace
from npu_backend.calls import draw_seed, on_host
from npu_backend.sampling.gumbel import RowSeed
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.loop import advance, initial_state

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
            prompt (`compat="official-2025"` fills prompt masks as the release does: they take part
            in every block and use up its budget, so that masks may be left at the end).
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
    canvas = lay_out(model.config, on_host(prompt), config, on_host(attention_mask))
    seeds = _row_seeds(generator, len(canvas.tokens), config)
    inputs = Inputs.of(canvas, config, seeds, model.device)
    return _run(model, inputs, canvas, inputs.plan.total_calls, steps_per_piece)


def _run(
    model: Any, inputs: Inputs, canvas: Canvas, total: int, steps_per_piece: int | None
) -> Iterator[Trace]:
    policy = canvas.policy
    tokens = torch.as_tensor(canvas.tokens, device=model.device)
    state = initial_state(model, inputs, tokens, policy)
    end = 0
    while end < total:
        end = min(total, end + (steps_per_piece or total))
        advance(model, inputs, state, end, policy)
        parts = (state.canvas.int(), state.order, state.confidence)
        yield canvas.trace(*(part.cpu().numpy().copy() for part in parts))
        if state.is_finished:
            return


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
