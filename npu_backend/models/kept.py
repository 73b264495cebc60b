"""Keys and values that outlive a model call, and the walk through the blocks that renews some rows.

A row's keys and values depend on that row's input alone. A sampler that changes few tokens per call
may therefore keep those of other rows, exactly or as an approximation, and send only a region of
rows through the blocks (Fast-dLLM, arXiv:2505.22618v3, sections 3.2 and 4). Keys are kept rotated:
a row never moves.

Shape letters: B batch, K positions, L rows of the region, Q rows that come out, D model width,
H head width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npu_backend.models.attention import Window, take_window
from npu_backend.models.rope import Rotation


class Kept(NamedTuple):
    """Keys and values of every position of one block, [B, L, kv_heads, H]; written in place."""

    k: Float[Tensor, "B K kv_heads H"]
    v: Float[Tensor, "B K kv_heads H"]

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> "Kept":
        """Nothing kept yet: zeros."""
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return cls(k, v)


Memory = list[Kept]
"""What is kept of all blocks."""


class Region(NamedTuple):
    """The rows sent through the blocks: `size` of them from `start` on."""

    start: int
    size: int
    renewed: Bool[Tensor, "#B L"] | None = None
    """Rows whose keys and values are written; the others see, and are not seen. None: all."""


def renew_rows(
    whole: Float[Tensor, "B K kv_heads H"], rows: Float[Tensor, "B L kv_heads H"], region: Region
) -> None:
    """Writes the rows of a region."""
    target = whole.narrow(1, region.start, region.size)
    if region.renewed is not None:
        rows = torch.where(region.renewed[:, :, None, None], rows, target)
    target.copy_(rows)


def reread_block(
    block: Any,
    x: Float[Tensor, "B L D"],
    turn: Rotation,
    kept: Kept,
    visible: Bool[Tensor, "#B #heads #L K"] | None,
    region: Region,
    window: Window | None = None,
) -> Float[Tensor, "B Q D"]:
    """One block on the rows of a region, which attend to all that is kept.

    `window` counts from the region's first row; with it, only its rows ask and come out.
    """
    attention = block.attention
    y = block.attn_norm(x)
    renew_rows(kept.k, attention.keys(y, turn), region)
    renew_rows(kept.v, attention.values(y), region)
    here: Rotation = (take_window(turn[0], window), take_window(turn[1], window))
    q = attention.queries(take_window(y, window), here)
    visible = None if visible is None else take_window(visible, window, axis=2)
    x = take_window(x, window) + attention.look(q, kept.k, kept.v, visible)
    return x + block.mlp(block.ff_norm(x))


def reread(
    blocks: Sequence[Any],
    x: Float[Tensor, "B L D"],
    turn: Rotation,
    kept: Memory,
    visible: Bool[Tensor, "#B #heads #L K"] | None,
    region: Region,
    window: Window | None,
) -> Float[Tensor, "B Q D"]:
    """Sends a region through all blocks.

    A window is taken in the last block, as `run_blocks` does.
    """
    for index, (block, own) in enumerate(zip(blocks, kept, strict=True)):
        last = window if index == len(blocks) - 1 else None
        x = reread_block(block, x, turn, own, visible, region, last)
    return x
