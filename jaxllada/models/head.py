"""The output head: logits of every token of the vocabulary, the largest product of small models.

Shape letters: D model width, V embedding rows.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.initializers import initial_weight


class Head(nnx.Module):
    """An untied head; `weight` is [V, D] as released, one row a token like the embedding."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, *, key: PRNGKeyArray):
        # Drawn as [in, out] like every dense layer, so that the fan-in is the model width.
        shape = (config.d_model, config.rows)
        drawn = initial_weight(config, "head", shape, 0, key, compute.param_dtype)
        self.weight = nnx.Param(drawn.T)
        has_bias = config.include_bias
        self.bias = nnx.Param(jnp.zeros(config.rows, compute.param_dtype)) if has_bias else None


def project(
    hidden: Float[Array, "*rows D"], weight: Float[Array, "V D"]
) -> Float[Array, "*rows V"]:
    """Multiplies in the type of `hidden`; the sums and the result are float32."""
    axes = (((hidden.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(
        hidden, weight.astype(hidden.dtype), axes, preferred_element_type=jnp.float32
    )
