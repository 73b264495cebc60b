"""Prompts laid out so that blocks begin at multiples of their length, counted in each row.

The option `start_block_align` (dInfer, arXiv:2510.08666v2; the grid of LLaDA2.0): what a prompt has
behind the last multiple shares the first block with the beginning of the answer. Rows of a batch
have tails of different length, so they are shifted until their grids lie on each other, and every
row is what it would be alone.

Shape letters: B rows, P prompt length, A aligned prompt length.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Aligned(NamedTuple):
    """A batch of prompts whose first block begins `block_length` columns before the end."""

    prompt: Int[np.ndarray, "B A"]
    """int32; masks where the answer begins inside the first block."""
    visible: Bool[np.ndarray, "B A"]
    tails: Int[np.ndarray, " B"]
    """Tokens of the prompt in the first block, below `block_length`."""


def aligned(
    prompt: Int[np.ndarray, "B P"],
    visible: Bool[np.ndarray, "B P"],
    block_length: int,
    mask_id: int,
    blank_id: int,
) -> Aligned:
    """Moves prompts, padded on the left, onto one grid; `blank_id` fills what nobody sees."""
    rows, width = prompt.shape
    # Padding ends at the first token that is seen; holes behind it keep their places.
    first = np.where(visible.any(axis=1), visible.argmax(axis=1), width)
    lengths = width - first
    tails = lengths % block_length
    begin = int((lengths - tails).max())
    laid = np.full((rows, begin + block_length), blank_id, np.int32)
    seen = np.zeros(laid.shape, bool)
    for row in range(rows):
        end = begin + tails[row]
        laid[row, end:] = mask_id
        laid[row, end - lengths[row] : end] = prompt[row, first[row] :]
        seen[row, end:] = True
        seen[row, end - lengths[row] : end] = visible[row, first[row] :]
    return Aligned(laid, seen, tails)
