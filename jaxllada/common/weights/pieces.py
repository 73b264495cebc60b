"""Cuts a weight into contiguous pieces of bounded size, transposed and cast on the way."""

import math
from collections.abc import Iterator

import numpy as np

from jaxllada.common.errors import UserError

PIECE_BYTES = 64 << 20
# Squares that stay in the cache while they are transposed, by way of a buffer whose rows do not lie
# a power of two apart (those would fall on few places of the cache): six times NumPy's speed.
_TILE, _PADDING = 512, 32


def rows_per_piece(shape: tuple[int, ...], itemsize: int, limit: int = PIECE_BYTES) -> int:
    """Rows of an even cut into 2**k pieces of at most `limit` bytes (one row if none fits).

    A power of two, so that the cuts fall where a mesh of 2, 4, 8, ... devices cuts as well.
    """
    rows, row_bytes = shape[0], math.prod(shape[1:]) * itemsize
    parts = 1
    while parts < rows and -(-rows // parts) * row_bytes > limit:
        parts *= 2
    return -(-rows // parts)


def pieces(
    array: np.ndarray, dtype: np.dtype, *, rows: int | None = None, what: str = ""
) -> Iterator[np.ndarray]:
    """Yields `array` as blocks of `rows` rows, each C-contiguous and of `dtype`, in order.

    An array that is so already is not copied. `what` names it in errors.

    Raises:
        UserError: a finite value is too large for `dtype`.
    """
    rows = rows or rows_per_piece(array.shape, max(array.itemsize, dtype.itemsize))
    for first in range(0, len(array), rows):
        yield cast(_contiguous(array[first : first + rows]), dtype, what)


def copy_transposed(out: np.ndarray, array: np.ndarray) -> None:
    """Copies a matrix whose transpose is contiguous into a C-contiguous one of the same type."""
    if out.dtype.itemsize == 2:  # NumPy copies its own types faster than bfloat16
        out, array = out.view(np.uint16), array.view(np.uint16)
    buffer = np.empty((_TILE, _TILE + _PADDING), out.dtype)
    for i in range(0, array.shape[0], _TILE):
        for j in range(0, array.shape[1], _TILE):
            part = array[i : i + _TILE, j : j + _TILE]
            tile = buffer[: part.shape[1], : part.shape[0]]
            tile[...] = part.T
            out[i : i + _TILE, j : j + _TILE] = tile.T


def _contiguous(block: np.ndarray) -> np.ndarray:
    if block.flags.c_contiguous or block.ndim != 2:
        return np.ascontiguousarray(block)
    out = np.empty(block.shape, block.dtype)
    copy_transposed(out, block)
    return out


def cast(block: np.ndarray, dtype: np.dtype, what: str = "") -> np.ndarray:
    """Returns `block` as `dtype`, itself if it is; refuses values that become infinite."""
    if block.dtype == dtype:
        return block
    with np.errstate(over="ignore"):
        result = block.astype(dtype)
    # Only float16 has a smaller range than the types it may come from, but rounding up to infinity
    # happens at the very end of float32 as well.
    if not np.isfinite(result).all() and (np.isinf(result) & np.isfinite(block)).any():
        largest = np.abs(block[np.isfinite(block)].astype(np.float32)).max()
        raise UserError(f"dtype={dtype.name}: {what} holds {largest:g}, which becomes infinite")
    return result
