"""Rotary positions (arXiv:2104.09864v5) in the half-split form of the released class.

Shape letters: B batch, L positions, H head width.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from npu_backend import ops

Rotation = tuple[Float[Tensor, "#B L 1 half"], Float[Tensor, "#B L 1 half"]]


def rotation(positions: Int[Tensor, "B L"], head_dim: int, theta: float) -> Rotation:
    """Returns cosine and sine of positions * theta**(-2i/H) radians, in float32."""
    # The exponents are rounded to float32 step by step, as the released class does it.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1) / np.float32(theta) ** exponent
    # Angles need float32: from 256 on, bfloat16 has no longer one value per integer position.
    angle = positions[..., None, None].float() * torch.from_numpy(frequency).to(positions.device)
    return torch.cos(angle), torch.sin(angle)


def rotate(
    x: Float[Tensor, "B L heads H"],
    turn: Rotation,
    *,
    full_precision: bool,
    kernels: ops.Kernels = ops.PLAIN,
) -> Float[Tensor, "B L heads H"]:
    """Rotates each pair (x[i], x[i + H/2]); in float32, or in the type of `x` if not."""
    dtype = torch.float32 if full_precision else x.dtype
    # The fused kernel rounds once; a rotation in 16 bits rounds every product.
    if kernels.rotary and dtype == torch.float32:
        return ops.fused_rotate(x.to(dtype), *turn).to(x.dtype)
    cos, sin = (part.to(dtype) for part in turn)
    return ops.plain_rotate(x.to(dtype), cos, sin).to(x.dtype)
