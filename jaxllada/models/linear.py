"""Matrix products of the model: float32 sums, rounded once to the activation type.

Shape letters: I input width, O output width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.initializers import Role, initial_weight

PRODUCT = "product"
"""Name under which a rematerialisation policy finds the outputs of dense layers."""


@jax.custom_vjp
def dot(x: Float[Array, "*rows I"], kernel: Float[Array, "I O"]) -> Float[Array, "*rows O"]:
    """Multiplies in the type of `x` with float32 accumulation and one rounding.

    Its derivative does the same: the products of the backward pass stay in the activation type
    instead of being promoted to the float32 of the accumulator.
    """
    return _contract(x, kernel, ((x.ndim - 1,), (0,))).astype(x.dtype)


def _contract(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _dot_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return dot(x, kernel), (x, kernel)


def _dot_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    return (
        _contract(grad, kernel, ((x.ndim - 1,), (1,))).astype(x.dtype),
        _contract(x, grad, (rows, rows)).astype(kernel.dtype),
    )


dot.defvjp(_dot_forward, _dot_backward)


@jax.custom_vjp
def frozen_dot(x: Float[Array, "*rows I"], kernel: Float[Array, "I O"]) -> Float[Array, "*rows O"]:
    """`dot` with a kernel of any type that is not trained: neither `x` nor a cast copy is kept."""
    return dot(x, kernel.astype(x.dtype))


def _frozen_forward(x: Array, kernel: Array) -> tuple[Array, Array]:
    return frozen_dot(x, kernel), kernel


def _frozen_backward(kernel: Array, grad: Array) -> tuple[Array, None]:
    back = _contract(grad, kernel.astype(grad.dtype), ((grad.ndim - 1,), (1,)))
    return back.astype(grad.dtype), None


frozen_dot.defvjp(_frozen_forward, _frozen_backward)


class Linear(nnx.Module):
    """A dense layer; `kernel` is [in, out], the transpose of the released `weight`."""

    def __init__(
        self,
        config: ModelConfig,
        compute: ComputeConfig,
        shape: tuple[int, int],
        role: Role,
        *,
        bias: bool,
        key: PRNGKeyArray,
        layer: Int[Array, ""] | int = 0,
    ):
        self.kernel = nnx.Param(
            initial_weight(config, role, shape, layer, key, compute.param_dtype)
        )
        self.bias = nnx.Param(jnp.zeros(shape[1:], compute.param_dtype)) if bias else None

    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        # Policies that look for dot_general do not see into a custom_vjp: the output has a name.
        y = checkpoint_name(dot(x, self.kernel[...].astype(x.dtype)), PRODUCT)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes a share `rate` of the entries and rescales the rest; without a key, returns `x`."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
