"""Prompts laid out for blocks that begin inside them.

Under `infill` those are the blocks from the first mask on, counted back from the end. The option
`start_block_align` (dInfer, arXiv:2510.08666v2; the grid of LLaDA2.0) lets blocks begin at
multiples of their length, counted in each row: what a prompt has behind the last multiple shares
the first block with the beginning of the answer. Rows of a batch have tails of different length,
so they are shifted until their grids lie on each other, and every row is what it would be alone.

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


class Led(NamedTuple):
    """A batch of prompts that ends with whole blocks, in which masks are filled."""

    prompt: Int[np.ndarray, "B A"]
    visible: Bool[np.ndarray, "B A"]
    lead: int
    """Blocks from the first mask of the batch to the end."""
    spare: int
    """Columns in front that no prompt has, where the first block would begin before them."""


def led(
    prompt: Int[np.ndarray, "B P"],
    visible: Bool[np.ndarray, "B P"],
    block_length: int,
    mask_id: int,
    blank_id: int,
) -> Led:
    """Counts the blocks that reach from the first mask to the end of the prompt.

    Blocks are counted from the end of the prompt, so that they do not depend on other rows.
    """
    length = prompt.shape[1]
    masks = ((prompt == mask_id) & visible).any(axis=0)
    lead = -(-(length - int(masks.argmax())) // block_length) if masks.any() else 0
    spare = max(0, lead * block_length - length)
    columns = [(0, 0), (spare, 0)]
    return Led(
        np.pad(prompt, columns, constant_values=blank_id), np.pad(visible, columns), lead, spare
    )
