"""Rotary positions (arXiv:2104.09864v5) in the half-split form of the released class.

Shape letters: B batch, L positions, H head width.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "#B L 1 half"], Float[Array, "#B L 1 half"]]


def rotation(positions: Int[Array, "B L"], head_dim: int, theta: float) -> Rotation:
    """Returns cosine and sine of positions * theta**(-2i/H) radians, in float32."""
    # The exponents are rounded to float32 step by step, as the released class does it.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1) / np.float32(theta) ** exponent
    # Angles need float32: from 256 on, bfloat16 has no longer one value per integer position.
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B L heads H"], turn: Rotation, *, full_precision: bool
) -> Float[Array, "B L heads H"]:
    """Rotates each pair (x[i], x[i + H/2]); in float32, or in the type of `x` if not."""
    dtype = jnp.float32 if full_precision else x.dtype
    cos, sin = (part.astype(dtype) for part in turn)
    x1, x2 = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)
