"""Which predictions of a step are kept: the most confident ones, lowest position first on ties.

Shape letters: B rows, S positions of the window.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def most_confident(
    confidence: Float[Array, "B S"],
    eligible: Bool[Array, "B S"],
    count: Int[Array, " B"],
    last: Bool[Array, "B S"] | None = None,
) -> Bool[Array, "B S"]:
    """Marks the `count` eligible positions of each row with the highest confidence.

    Positions in `last` come after all others. Fewer than `count` eligible positions: all of them.
    """
    group = jnp.where(eligible, 0, 2)
    if last is not None:
        group += last & eligible
    position = lax.broadcasted_iota(jnp.int32, confidence.shape, 1)
    # float32 keys: adding an offset for `last` would round small confidences to equal values.
    _, _, order = lax.sort((group, -confidence, position), dimension=1, num_keys=3)
    _, rank = lax.sort((order, position), dimension=1, num_keys=1)
    return eligible & (rank < count[:, None])
