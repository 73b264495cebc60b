"""All blocks of a model in one kernel, for Intel CPUs with a matrix unit (AMX).

float32 products are made of exact products of bytes, about as accurate as float32 sums; `bytes.h`
says where not. bfloat16 products are the unit's own.

Shape letters: N layers, G rows of a model call, R positions given, S positions of a window, L
positions attended to, D model width, H head width, I input width, O output width.
"""

import ctypes
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxllada.native.build import cpu_has, library

TARGET, PACK = "jaxllada_body", "jaxllada_pack"

UNIT = ("amx_tile", "amx_int8", "amx_bf16", "avx512bw")
"""Features that a processor needs."""

FORMATS = {"float32": (16, 64, 3 * 1024), "bfloat16": (32, 32, 2 * 1024)}
"""Outputs of a panel, inputs that a step takes, and bytes of a step of a weight."""

WIDEST = 33_024
"""Numbers of a row beyond which sums of products of bytes could overflow."""

Packed = tuple[UInt8[Array, "N _"], Float[Array, "N _"]]
"""One weight of all layers, as the matrix unit reads it, and a scale of each of its columns."""


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("body") if cpu_has(*UNIT) else None
    if kernel is None or not kernel.jaxllada_body_is_possible():
        return None
    for target in (TARGET, PACK):
        jax.ffi.register_ffi_target(
            target, jax.ffi.pycapsule(getattr(kernel, target)), platform="cpu"
        )
    return kernel


def has_kernel(dtype: str) -> bool:
    """Whether the kernel computes in this type here: one CPU device, which has a matrix unit."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    return dtype in FORMATS and _kernel() is not None


def pack(weight: Float[Array, "N I O"]) -> Packed:
    """Lays a weight of all layers out for the matrix unit."""
    layers, width, out = weight.shape
    columns, unit, step = FORMATS[weight.dtype.name]
    panels = -(-out // columns)
    size = panels * -(-width // unit) * step
    shapes = (
        jax.ShapeDtypeStruct((layers, size), jnp.uint8),
        jax.ShapeDtypeStruct((layers, panels * columns), jnp.float32),
    )
    panels, scale = jax.ffi.ffi_call(PACK, shapes)(weight)
    return panels, scale


def run(
    x: Float[Array, "G R D"],
    angles: tuple[Float[Array, "#G R half"], Float[Array, "#G R half"]],
    visible: Bool[Array, "#G #R L"],
    place: tuple[Int[Array, ""] | int, ...],
    norms: tuple[Float[Array, "N D"], Float[Array, "N D"]],
    weights: tuple[Packed, ...],
    kept: tuple[Array, ...],
    *,
    window: int,
    **sizes: Any,
) -> tuple[Float[Array, "G S D"], tuple[Array, ...]]:
    """Sends positions through all blocks, and returns those of a window and what is kept.

    Args:
        x: what goes into the first block.
        angles: cosines and sines of the given positions.
        visible: which keys each of them sees.
        place: position of the first one given; the first whose keys and values are renewed, and
            the one behind the last; the first of the window. Others are not computed.
        norms: weights of the norms before attention and before the feed-forward part.
        weights: queries, keys, values, attention output, gate, up and down.
        kept: keys and values [N, G, kv_heads, L, H], written in place; or nothing, if all positions
            are given and renewed.
        window: how many positions come out.
        sizes: `eps`, `heads`, `kv_heads`, `ffn_width`.
    """
    out = jax.ShapeDtypeStruct((x.shape[0], window, x.shape[2]), x.dtype)
    places = jnp.stack([jnp.asarray(position, jnp.int32) for position in place])
    packed = [part for weight in weights for part in weight]
    given = (x, *angles, visible, places, *norms, *packed)
    call = jax.ffi.ffi_call(
        TARGET,
        (out, *(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in kept)),
        input_output_aliases={len(given) + i: 1 + i for i in range(len(kept))},
    )
    eps = np.float32(sizes.pop("eps"))
    attributes = {name: np.int64(size) for name, size in sizes.items()}
    rows, *renewed = call(*given, *kept, eps=eps, **attributes)
    return rows, tuple(renewed)
