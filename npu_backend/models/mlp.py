"""Feed-forward part of a block, in both released forms.

Shape letters: D model width, F inner width.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend import ops
from npu_backend.models.linear import Linear

_ACTIVATION = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}


class Mlp(nn.Module):
    """`llama`: act(x ff_proj) * (x up_proj), then ff_out. `sequential`: act(x ff_proj), ff_out.

    The activation `swiglu` of a sequential block halves its input into (value, gate).
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        super().__init__()
        self.config, self.kernels = config, ops.PLAIN
        width, ffn, bias = config.d_model, config.ffn_width, config.include_bias
        inner = ffn // 2 if config.activation_type == "swiglu" else ffn
        self.ff_proj = Linear(compute, (width, ffn), bias=bias)
        self.up_proj = (
            Linear(compute, (width, ffn), bias=bias) if config.block_type == "llama" else None
        )
        self.ff_out = Linear(compute, (inner, width), bias=bias)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Maps each position on its own."""
        gate = self.ff_proj(x)
        swiglu = ops.fused_swiglu if self.kernels.swiglu else ops.plain_swiglu
        if self.config.activation_type == "swiglu":
            value, gate = gate.chunk(2, dim=-1)
            return self.ff_out(swiglu(gate, value))
        if self.config.activation_type == "silu" and self.up_proj is not None:
            return self.ff_out(swiglu(gate, self.up_proj(x)))
        inner = _ACTIVATION[self.config.activation_type](gate)
        return self.ff_out(inner if self.up_proj is None else inner * self.up_proj(x))
