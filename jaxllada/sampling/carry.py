"""What a reader keeps, carried over to a canvas with other rows or another length.

Shape letters: R rows on the new canvas.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxllada.models.kept import Kept


def carried(memory: Any, rows: Int[np.ndarray, " R"], length: int) -> Any:
    """Takes rows out of a memory, and cuts or extends its keys and values to `length` positions.

    New positions hold zeros: they are computed before anything sees them. Features of an answer
    belong to canvases of one length and keep theirs.
    """

    def take(x: Any) -> Any:
        if isinstance(x, Kept):
            return Kept(*(_resized(jnp.take(part, rows, axis=-4), length) for part in x))
        return jnp.take(x, rows, axis=-3) if x.ndim else x

    return jax.tree.map(take, memory, is_leaf=lambda x: isinstance(x, Kept))


def _resized(x: Array, length: int) -> Array:
    x = x[..., :length, :]
    missing = length - x.shape[-2]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)]) if missing else x
