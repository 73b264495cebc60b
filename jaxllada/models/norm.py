"""The four norms of the released class, with its order of rounding.

Shape letters: D normalised width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig

LAYER_NORM_EPS = 1e-5


class Norm(nnx.Module):
    """Root-mean-square norm or LayerNorm over the last axis, as `layer_norm_type` says."""

    def __init__(
        self, config: ModelConfig, compute: ComputeConfig, width: int, *, affine: bool | None = None
    ):
        self.config = config
        affine = config.layer_norm_with_affine if affine is None else affine
        biased = affine and config.norm_bias
        self.weight = nnx.Param(jnp.ones((width,), compute.param_dtype)) if affine else None
        self.bias = nnx.Param(jnp.zeros((width,), compute.param_dtype)) if biased else None

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalises in float32; the result has the type of `x`."""
        kind = self.config.layer_norm_type
        wide = x.astype(jnp.float32)
        if kind in ("default", "low_precision"):
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
            y = _unit_scale(wide, LAYER_NORM_EPS)
            # LayerNorm applies weight and bias before its only rounding.
            return self._affine(y, x.dtype if kind == "low_precision" else None).astype(x.dtype)
        # The RMS norms round first and scale in the activation type: bits depend on this order.
        return self._affine(_unit_scale(wide, self.config.rms_norm_eps).astype(x.dtype), x.dtype)

    def _affine(self, y: Float[Array, "*rows D"], dtype: jnp.dtype | None) -> Float[Array, "..."]:
        if self.weight is None:
            return y
        weight = self.weight[...] if dtype is None else self.weight[...].astype(dtype)
        y = y * (1 + weight) if self.config.layer_norm_type == "gemma_rms" else y * weight
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def _unit_scale(x: Float[Array, "*rows D"], eps: float) -> Float[Array, "*rows D"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
