"""Feed-forward part of a block, in both released forms.

Shape letters: D model width, F inner width.
"""

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.linear import Linear

_ACTIVATION = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class Mlp(nnx.Module):
    """`llama`: act(x ff_proj) * (x up_proj), then ff_out. `sequential`: act(x ff_proj), ff_out.

    The activation `swiglu` of a sequential block halves its input into (value, gate).
    """

    def __init__(
        self,
        config: ModelConfig,
        compute: ComputeConfig,
        *,
        layer: Int[Array, ""] | int,
        key: PRNGKeyArray,
    ):
        self.config = config
        width, ffn, bias = config.d_model, config.ffn_width, config.include_bias
        inner = ffn // 2 if config.activation_type == "swiglu" else ffn
        keys = jax.random.split(key, 3)
        self.ff_proj = Linear(config, compute, (width, ffn), "in", bias=bias, key=keys[0])
        self.up_proj = (
            Linear(config, compute, (width, ffn), "in", bias=bias, key=keys[1])
            if config.block_type == "llama"
            else None
        )
        self.ff_out = Linear(
            config, compute, (inner, width), "mlp_out", bias=bias, key=keys[2], layer=layer
        )

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Maps each position on its own."""
        gate = self.ff_proj(x)
        if self.config.activation_type == "swiglu":
            value, gate = jax.numpy.split(gate, 2, axis=-1)
            return self.ff_out(jax.nn.silu(gate) * value)
        inner = _ACTIVATION[self.config.activation_type](gate)
        return self.ff_out(inner if self.up_proj is None else inner * self.up_proj(x))
