"""The canvas that a device works on: prompt, masks to fill, padding.

`common/answer_rows.py` lays it out on the host.

Shape letters: R rows on the device, L canvas length.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxllada.common.policy import Policy


class Snapshot(NamedTuple):
    """What a device has come to."""

    tokens: Int[np.ndarray, "R L"]
    order: Int[np.ndarray, "R L"]
    confidence: Float32[np.ndarray, "R L"]
    block: int
    """Blocks that are finished."""
    step: int
    """Model calls made."""


@dataclass(frozen=True)
class Canvas:
    """What a device starts from."""

    rows: Int[np.ndarray, " R"]
    """Which rows of the run these are; one may be there twice, to fill up a batch."""
    tokens: Int[np.ndarray, "R L"]
    """int32: prompt, answer with masks, and end tokens that nobody sees up to the length."""
    order: Int[np.ndarray, "R L"]
    confidence: Float32[np.ndarray, "R L"]
    visible: Bool[np.ndarray, "R L"]
    """Keys that may be attended to."""
    known: Bool[np.ndarray, "R L"]
    """Given tokens, which guidance hides for the unconditional prediction."""
    positions: Int[np.ndarray, "R L"]
    """int32 rotary positions."""
    prompt_length: int
    """First position of the first block."""
    gen_length: int
    """Positions of the blocks of the longest answer on this canvas."""
    lead: int
    """Blocks that lie before the end of the prompt; randomness counts from there."""
    block: int
    """Blocks that are finished."""
    step: int
    """Model calls made."""
    policy: Policy


def positions_of(visible: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B L"]:
    """Rotary positions that start at each row's first visible token, as if it were alone.

    Attention depends on distances only, so this equals the release, which counts the padding, up
    to rounding; and here the rounding is that of the row's own run. Holes keep their places.
    """
    places = np.arange(visible.shape[1]) - visible.argmax(axis=1)[:, None]
    return np.maximum(places, 0).astype(np.int32)
