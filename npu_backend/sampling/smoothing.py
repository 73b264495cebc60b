"""Masks that carry a share of what was predicted for them into the next call.

Iteration smoothing (dInfer, arXiv:2510.08666v2); `common/config/smoothing.py` has the formula.

Shape letters: B, R rows, L canvas length, S positions of the window, N positions, D model width,
V vocabulary rows.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from jaxllada.common.policy import Policy
from npu_backend.models.head import product
from npu_backend.sampling.inputs import Inputs

Soft = Float[Tensor, "B L D"] | None
"""What is added to the embeddings of masks, in the activation type; None without smoothing."""


class Table(NamedTuple):
    """The embedding as a plain tensor."""

    weight: Float[Tensor, "V D"]
    scale: float

    @classmethod
    def of(cls, model: Any) -> "Table":
        """Takes the embedding of a model, in the activation type."""
        config = model.config
        scale = math.sqrt(config.d_model) if config.input_emb_norm else 1.0
        return cls(model.wte.to(model.dtype), scale)


def no_soft(model: Any, canvas: Int[Tensor, "B L"], policy: Policy) -> Soft:
    """What masks carry before the first call."""
    if not policy.is_smooth:
        return None
    shape = (*canvas.shape, model.config.d_model)
    return torch.zeros(shape, dtype=model.dtype, device=canvas.device)


def expected_embedding(logits: Float[Tensor, "N V"], table: Table) -> Float[Tensor, "N D"]:
    """softmax(logits) @ E: products in the activation type, sums and result in float32.

    On an NPU a 16-bit product is rounded once to 16 bits.
    """
    weight = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    mixed = product(weight.to(table.weight.dtype), table.weight)
    return mixed * (table.scale / weight.sum(dim=1))[:, None]


def of_masks(soft: Soft, canvas: Int[Tensor, "B L"], policy: Policy) -> Soft:
    """What enters the next call: nothing at positions that hold a token by now."""
    if soft is None:
        return None
    return torch.where((canvas == policy.mask_id)[..., None], soft, 0)


def remembered(
    soft: Float[Tensor, "B S D"],
    expected: Float[Tensor, "B S D"],
    is_read: Bool[Tensor, "B S"],
    call: int,
    inputs: Inputs,
) -> Float[Tensor, "B S D"]:
    """What the window carries after a call: its share of the prediction where one was made."""
    new = (inputs.weights[call] * expected).to(soft.dtype)
    return torch.where(is_read[..., None], new, soft)


def carried_soft(
    soft: Soft, rows: Int[np.ndarray, " R"], length: int
) -> Float[Tensor, "R N D"] | None:
    """Takes rows over to a canvas of another length; new positions carry nothing."""
    if soft is None:
        return None
    taken = soft.index_select(0, torch.as_tensor(rows, device=soft.device))[:, :length]
    return F.pad(taken, (0, 0, 0, length - taken.shape[1]))
