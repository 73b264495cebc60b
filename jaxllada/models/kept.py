"""Keys and values that outlive a model call, and the walk through the blocks that renews some rows.

A row's keys and values depend on that row's input alone. A sampler that changes few tokens per call
may therefore keep those of other rows, exactly or as an approximation, and send only a region of
rows through the blocks (Fast-dLLM, arXiv:2505.22618v3, sections 3.2 and 4). Keys are kept rotated:
a row never moves.

Shape letters: B batch, K positions, L rows of the region, Q rows that come out, D model width,
H head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.models.attention import Window, take_window
from jaxllada.models.block import Block, layer_of
from jaxllada.models.packed import PackedBlocks
from jaxllada.models.rope import Rotation


class Kept(NamedTuple):
    """Keys and values of every position, heads before positions as attention reads them.

    Of one block [B, kv_heads, L, H], or of a stack of blocks with a leading axis.
    """

    k: Float[Array, "*layers B kv_heads K H"]
    v: Float[Array, "*layers B kv_heads K H"]

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> "Kept":
        """Nothing kept yet: zeros."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


Memory = Kept | tuple[Kept, ...]
"""What is kept of all blocks: one `Kept` of a stack, or one for each of single blocks."""


class Region(NamedTuple):
    """The rows sent through the blocks: `size` of them (static) from `start` on."""

    start: Int[Array, ""] | int
    size: int
    renewed: Bool[Array, "#B L"] | None = None
    """Rows whose keys and values are written; the others see, and are not seen. None: all."""
    span: tuple[Int[Array, ""], Int[Array, ""]] | None = None
    """The same as a first row and the one behind the last, for `PackedBlocks`: they compute no
    others but those that come out."""


def renew_rows(
    whole: Float[Array, "*layers B kv_heads K H"],
    rows: Float[Array, "B L kv_heads H"],
    region: Region,
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "*layers B kv_heads K H"]:
    """Writes the rows of a region, into one layer of a stack if `layer` is given."""
    rows = jnp.swapaxes(rows, 1, 2)
    covers_all = region.size == whole.shape[-2]
    place = (0, 0, 0 if covers_all else region.start, 0)
    if layer is not None:
        rows, place = rows[None], (layer, *place)
    if region.renewed is not None:
        old = lax.dynamic_slice(whole, place, rows.shape)
        rows = jnp.where(region.renewed[:, None, :, None], rows, old)
    if covers_all and layer is None:
        return rows
    return lax.dynamic_update_slice(whole, rows, place)


def reread_block(
    block: Block,
    x: Float[Array, "B L D"],
    turn: Rotation,
    kept: Kept,
    visible: Bool[Array, "#B #heads #L K"] | None,
    region: Region,
    window: Window | None = None,
    layer: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "B Q D"], Kept]:
    """One block on the rows of a region, which attend to all that is kept.

    `window` counts from the region's first row; with it, only its rows ask and come out.
    """
    attention = block.attention
    y = block.attn_norm(x)
    kept = Kept(
        renew_rows(kept.k, attention.keys(y, turn), region, layer),
        renew_rows(kept.v, attention.values(y), region, layer),
    )
    own = kept if layer is None else Kept(kept.k[layer], kept.v[layer])
    here: Rotation = (take_window(turn[0], window), take_window(turn[1], window))
    q = attention.queries(take_window(y, window), here)
    visible = None if visible is None else take_window(visible, window, axis=2)
    x = take_window(x, window) + attention.look(q, own.k, own.v, visible)
    return x + block.mlp(block.ff_norm(x)), kept


def reread(
    blocks: Block | tuple[Block, ...] | PackedBlocks,
    x: Float[Array, "B L D"],
    turn: Rotation,
    kept: Memory,
    visible: Bool[Array, "#B #heads #L K"] | None,
    region: Region,
    window: Window | None,
) -> tuple[Float[Array, "B Q D"], Memory]:
    """Sends a region through all blocks: single ones with a `Kept` each, or a stack with one.

    A window is taken in the last block, as `run_blocks` does.
    """
    if isinstance(blocks, PackedBlocks):
        assert isinstance(kept, Kept)
        assert region.renewed is None
        options = {"start": region.start, "span": region.span, "window": window}
        x, parts = blocks.run(x, turn, visible, kept=tuple(kept), **options)
        return x, Kept(*parts)

    if isinstance(blocks, tuple):
        assert not isinstance(kept, Kept)
        renewed = []
        for index, (block, own) in enumerate(zip(blocks, kept, strict=True)):
            last = window if index == len(blocks) - 1 else None
            x, own = reread_block(block, x, turn, own, visible, region, last)
            renewed.append(own)
        return x, tuple(renewed)

    assert isinstance(kept, Kept)
    depth = len(kept.k)

    def step(
        layer: Array, carry: tuple[Array, Kept], window: Window | None = None
    ) -> tuple[Array, Kept]:
        x, kept = carry
        block = layer_of(blocks, layer)
        return reread_block(block, x, turn, kept, visible, region, window, layer)

    carry = lax.fori_loop(0, depth - 1, step, (x, kept))
    return step(jnp.int32(depth - 1), carry, window)


def empty_memory(
    blocks: Block | tuple[Block, ...] | PackedBlocks,
    shape: tuple[int, int, int, int],
    dtype: jnp.dtype,
) -> Memory:
    """Room for the keys and values [B, kv_heads, L, H] of every block, in the form of `blocks`."""
    if isinstance(blocks, tuple):
        return tuple(Kept.empty(shape, dtype) for _ in blocks)
    depth = jax.tree.leaves(blocks)[0].shape[0]
    return Kept.empty((depth, *shape), dtype)
