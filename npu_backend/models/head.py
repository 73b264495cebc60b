"""The output head: logits of every token of the vocabulary, the largest product of small models.

Shape letters: D model width, V embedding rows.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend.models.linear import param


class Head(nn.Module):
    """An untied head; `weight` is [V, D] as released, one row a token like the embedding."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        super().__init__()
        self.weight = param(compute, config.rows, config.d_model)
        self.bias = param(compute, config.rows) if config.include_bias else None


def project(
    hidden: Float[Tensor, "*rows D"], weight: Float[Tensor, "V D"]
) -> Float[Tensor, "*rows V"]:
    """Multiplies in the type of `hidden`; the sums and the result are float32.

    On an NPU a 16-bit product is rounded once to 16 bits: no kernel there is known to return more.
    """
    weight = weight.to(hidden.dtype)
    if hidden.dtype == torch.float32:
        return F.linear(hidden, weight)
    return _Project.apply(hidden, weight)


def product(a: Float[Tensor, "R D"], b: Float[Tensor, "D V"]) -> Float[Tensor, "R V"]:
    """a b in float32 from 16-bit factors; has no gradient of its own."""
    if a.dtype == torch.float32 or a.device.type == "npu":
        return (a @ b).float()
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # exact: products of 16-bit numbers fit into float32


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        rows = product(hidden.reshape(-1, hidden.shape[-1]), weight.T)
        return rows.view(*hidden.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        hidden, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1]).to(hidden.dtype)
        return (
            (flat @ weight).view(hidden.shape),
            flat.T @ hidden.reshape(-1, hidden.shape[-1]),
        )
