"""A look ahead: where the model expects the end of an answer, before anything is committed.

One model call on the canvas as it is. Adaptive canvases decide by it (`common/lengths.py`).

Shape letters: B rows, G rows of a model call, L canvas length, N positions of a chunk, V vocabulary
rows.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.calls import inference
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.reader import Body, Call, PlainReader

CHUNK = 64
"""Canvas columns whose logits exist at the same time."""


def foresee(
    model: Any, inputs: Inputs, canvas: Int[Tensor, "B L"], policy: Policy
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Returns where the end token is the likeliest, and its probability (float32).

    What an option forbids or holds back is predicted like the rest; masks are not.
    """
    tokens = canvas
    if policy.is_guided:
        tokens = torch.cat([tokens, torch.where(inputs.known, policy.mask_id, tokens)])
    whole = dataclasses.replace(policy, window=canvas.shape[1])
    with inference(model):
        call = Call(tokens, 0, 0, 0, 0)
        states, _ = PlainReader().read(Body.of(model, inputs, policy), (), call, whole)
        found = [_read(model, rows, inputs, policy) for rows in states.split(CHUNK, dim=1)]
    is_end, end = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return is_end, end


def _read(
    model: Any, rows: Float[Tensor, "G N D"], inputs: Inputs, policy: Policy
) -> tuple[Bool[Tensor, "B N"], Float[Tensor, "B N"]]:
    logits = model.head(rows.flatten(0, 1)).view(*rows.shape[:2], -1)
    if policy.is_guided:
        given, unconditional = logits.chunk(2)
        logits = unconditional + (inputs.cfg_scale + 1) * (given - unconditional)
    end = (logits[..., policy.eos_id] - logits.logsumexp(dim=-1)).exp()
    # Written into the logits, which nobody reads afterwards: masks are never predicted.
    logits[..., policy.mask_id] = -torch.inf
    return logits.argmax(dim=-1) == policy.eos_id, end
