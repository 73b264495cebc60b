"""The four norms of the released class, with its order of rounding.

Shape letters: D normalised width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend import ops
from npu_backend.models.linear import param

LAYER_NORM_EPS = 1e-5


class Norm(nn.Module):
    """Root-mean-square norm or LayerNorm over the last axis, as `layer_norm_type` says."""

    def __init__(
        self, config: ModelConfig, compute: ComputeConfig, width: int, *, affine: bool | None = None
    ):
        super().__init__()
        self.config, self.kernels = config, ops.PLAIN
        affine = config.layer_norm_with_affine if affine is None else affine
        biased = affine and config.norm_bias
        self.weight = param(compute, width) if affine else None
        self.bias = param(compute, width) if biased else None

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Normalises in float32; the result has the type of `x`."""
        kind = self.config.layer_norm_type
        if kind in ("default", "low_precision"):
            wide = x.float()
            y = ops.unit_rms(wide - wide.mean(dim=-1, keepdim=True), LAYER_NORM_EPS)
            # LayerNorm applies weight and bias before its only rounding.
            return self._affine(y, x.dtype if kind == "low_precision" else None).to(x.dtype)
        # The RMS norms round first and scale in the activation type: bits depend on this order.
        unit_rms = ops.fused_unit_rms if self.kernels.rms_norm else ops.unit_rms
        return self._affine(unit_rms(x, self.config.rms_norm_eps), x.dtype)

    def _affine(
        self, y: Float[Tensor, "*rows D"], dtype: torch.dtype | None
    ) -> Float[Tensor, "*rows D"]:
        if self.weight is None:
            return y
        weight = self.weight if dtype is None else self.weight.to(dtype)
        y = y * (1 + weight) if self.config.layer_norm_type == "gemma_rms" else y * weight
        return y if self.bias is None else y + self.bias.to(y.dtype)
