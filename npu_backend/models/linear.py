"""Matrix products of the model: float32 sums, rounded once to the activation type.

Shape letters: I input width, O output width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jaxllada.common.config.compute import ComputeConfig


def param(compute: ComputeConfig, *shape: int) -> nn.Parameter:
    """An uninitialised weight of the stored type; `initializers.py` fills it."""
    return nn.Parameter(torch.empty(shape, dtype=getattr(torch, compute.param_dtype)))


class Linear(nn.Module):
    """A dense layer; `weight` is [out, in] as released."""

    def __init__(self, compute: ComputeConfig, shape: tuple[int, int], *, bias: bool):
        super().__init__()
        self.weight = param(compute, *reversed(shape))
        self.bias = param(compute, shape[1]) if bias else None

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        # The product is rounded before the bias is added.
        y = F.linear(x, self.weight.to(x.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)
