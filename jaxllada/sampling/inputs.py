"""The data a sampling run is carried out on.

Shape letters: B rows, L canvas length.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Inputs(NamedTuple):
    """What stays the same during a run."""

    visible: Bool[Array, "B L"]
    """Keys that may be attended to."""
    positions: Int[Array, "B L"]
    """Rotary positions."""
    known: Bool[Array, "B L"]
    """Prompt positions that guidance hides for the unconditional prediction."""
    keys: Array
    """One random key per row."""
    prompt_length: Int[Array, ""]
    steps_per_block: Int[Array, ""]
    calls_per_block: Int[Array, ""]
    temperature: Float[Array, ""]
    cfg_scale: Float[Array, ""]
