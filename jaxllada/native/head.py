"""The head and the reading of its logits in one kernel: no logits are written.

Shape letters: N hidden rows, D model width, V vocabulary rows.
"""

import ctypes
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxllada.native.build import library

TARGET = "jaxllada_head"
UNIT = 32
"""Numbers of a row that the kernel for bfloat16 takes at once."""


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
        jax.ffi.register_ffi_target(
            TARGET, jax.ffi.pycapsule(getattr(kernel, TARGET)), platform="cpu"
        )
    return kernel


@functools.cache
def _has_bfloat16() -> bool:
    kernel = _kernel()
    return kernel is not None and bool(kernel.jaxllada_head_has_bfloat16())


def has_kernel(weight: Float[Array, "V D"]) -> bool:
    """Whether the kernel can take the head: one CPU device, float32, or bfloat16 where a CPU
    multiplies it in hardware."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if weight.dtype == jnp.bfloat16:
        return weight.shape[1] % UNIT == 0 and _has_bfloat16()
    return weight.dtype == jnp.float32 and _kernel() is not None


def likeliest(
    weight: Float[Array, "V D"],
    rows: Float[Array, "N D"],
    bias: Float[Array, " V"] | None = None,
    *,
    scale: float = 1.0,
    hidden: Int[Array, " H"] | None = None,
    excluded: int = -1,
) -> Likeliest:
    """Multiplies and reads; sums are float32, the lowest token wins a tie.

    Logits are `scale * (weight @ row + bias)`. `hidden` tokens do not exist; the `excluded` one
    counts in the total and is not chosen.
    """
    as_float = jax.ShapeDtypeStruct((len(rows),), jnp.float32)
    found = jax.ffi.ffi_call(
        TARGET, (jax.ShapeDtypeStruct(as_float.shape, jnp.int32), as_float, as_float)
    )(
        weight,
        rows.astype(weight.dtype),
        jnp.zeros(0, jnp.float32) if bias is None else bias.astype(jnp.float32),
        jnp.zeros(0, jnp.int32) if hidden is None else hidden.astype(jnp.int32),
        scale=np.float32(scale),
        excluded=np.int64(excluded),
    )
    return Likeliest(*found)
