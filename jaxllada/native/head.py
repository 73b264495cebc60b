"""The head and the reading of its logits in one kernel: no logits are written.

Shape letters: N hidden rows, D model width, V vocabulary rows.
"""

import ctypes
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxllada.native.blocks import FORMATS, WIDEST
from jaxllada.native.build import library

TARGET, PACKED_TARGET, PACK = "jaxllada_head", "jaxllada_packed_head", "jaxllada_pack_head"
UNIT = 32
"""Numbers of a row that the kernel for bfloat16 takes at once."""


class PackedHead(NamedTuple):
    """A float32 weight as a matrix unit reads it: three quarters of its bytes."""

    panels: UInt8[Array, "panels bytes"]
    scale: Float[Array, " V_padded"]


class Likeliest(NamedTuple):
    """The most likely token of every row."""

    token: Int[Array, " N"]
    logit: Float[Array, " N"]
    total: Float[Array, " N"]
    """Sum of exp(logit - that logit) over the vocabulary: one over its probability."""


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("head")
    if kernel is not None:
        for target in (TARGET, PACKED_TARGET, PACK):
            function = jax.ffi.pycapsule(getattr(kernel, target))
            jax.ffi.register_ffi_target(target, function, platform="cpu")
    return kernel


@functools.cache
def _has_tiles() -> bool:
    kernel = _kernel()
    return kernel is not None and bool(kernel.jaxllada_head_has_tiles())


def has_kernel(weight: Float[Array, "V D"]) -> bool:
    """Whether the kernel can take the head: one CPU device, float32, or bfloat16 where a CPU
    multiplies it in hardware."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if weight.dtype == jnp.bfloat16:
        return weight.shape[1] % UNIT == 0 and _has_tiles()
    return weight.dtype == jnp.float32 and _kernel() is not None


def can_pack_head(weight: Float[Array, "V D"]) -> bool:
    """Whether the kernel reads this weight faster when it is packed."""
    is_narrow = weight.shape[1] <= WIDEST
    return weight.dtype == jnp.float32 and is_narrow and has_kernel(weight) and _has_tiles()


@jax.jit
def pack_head(weight: Float[Array, "V D"]) -> PackedHead:
    """Lays a float32 head out for the matrix unit."""
    tokens, width = weight.shape
    rows, unit, step = FORMATS["float32"]
    panels = -(-tokens // rows)
    shapes = (
        jax.ShapeDtypeStruct((panels, -(-width // unit) * step), jnp.uint8),
        jax.ShapeDtypeStruct((panels * rows,), jnp.float32),
    )
    return PackedHead(*jax.ffi.ffi_call(PACK, shapes)(weight))


def likeliest(
    weight: Float[Array, "V D"],
    rows: Float[Array, "N D"],
    bias: Float[Array, " V"] | None = None,
    *,
    scale: float = 1.0,
    hidden: Int[Array, " H"] | None = None,
    excluded: int = -1,
    packed: PackedHead | None = None,
) -> Likeliest:
    """Multiplies and reads; sums are float32, the lowest token wins a tie.

    Logits are `scale * (weight @ row + bias)`. `hidden` tokens do not exist; the `excluded` one
    counts in the total and is not chosen. `packed` is read in place of the weight.
    """
    as_float = jax.ShapeDtypeStruct((len(rows),), jnp.float32)
    shapes = (jax.ShapeDtypeStruct(as_float.shape, jnp.int32), as_float, as_float)
    rest = (
        rows.astype(weight.dtype),
        jnp.zeros(0, jnp.float32) if bias is None else bias.astype(jnp.float32),
        jnp.zeros(0, jnp.int32) if hidden is None else hidden.astype(jnp.int32),
    )
    options = {"scale": np.float32(scale), "excluded": np.int64(excluded)}
    if packed is None:
        return Likeliest(*jax.ffi.ffi_call(TARGET, shapes)(weight, *rest, **options))
    call = jax.ffi.ffi_call(PACKED_TARGET, shapes)
    return Likeliest(*call(*packed, *rest, **options, tokens=np.int64(len(weight))))
