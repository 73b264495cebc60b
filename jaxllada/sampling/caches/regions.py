"""Caches that recompute a region around the active block: prefix, dual, vicinity, block-causal.

Keys and values of all positions are kept; a call sends some rows through all layers and renews
theirs. What those rows are is said by `common.regions`. Everything has a static shape, so one
compiled loop serves all blocks, and the buffers are written in place.

Shape letters: G rows of a model call, S positions of the window, D model width.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.common.regions import Regions
from jaxllada.models.kept import Memory, Region
from jaxllada.models.packed import PackedBlocks
from jaxllada.sampling.reader import Body, Call


class RegionMemory(NamedTuple):
    """What a call finds of those before it."""

    kept: Memory
    block_start: Int[Array, ""]
    """Where the block of the call before began."""


@dataclass(frozen=True)
class RegionReader:
    """Reads the active window beside what is kept of the canvas."""

    regions: Regions

    def start(self, body: Body, policy: Policy) -> RegionMemory:
        """Room for the whole canvas."""
        memory = body.model.memory(*body.visible.shape, body.blocks)
        return RegionMemory(memory, body.prompt_length)

    def read(
        self, body: Body, memory: RegionMemory, call: Call, policy: Policy
    ) -> tuple[Float[Array, "G S D"], RegionMemory]:
        """Returns the hidden rows of the window, and the memory after the call."""
        regions, sight, length = self.regions, body.sight, call.canvas.shape[1]
        first, last = regions.span(call.block_start, call.number, body.end)
        first, last = jnp.maximum(first, 0), jnp.minimum(last, body.end)

        is_whole = regions.reads_whole(call.age, call.number, call.block_start - memory.block_start)

        if isinstance(body.blocks, PackedBlocks):
            span = (jnp.where(is_whole, 0, first), jnp.where(is_whole, length, last))
            rows, kept = body.model.reread(
                call.canvas, memory.kept, Region(0, length, span=span), sight.of_all(),
                turn=body.turn, window=(call.start, policy.window), blocks=body.blocks,
                soft=call.soft,
            )  # fmt: skip
            return rows, RegionMemory(kept, call.block_start)

        def whole(kept: Memory) -> tuple[Array, Memory]:
            return body.model.reread(
                call.canvas, kept, Region(0, length), sight.of_all(),
                turn=body.turn, window=(call.start, policy.window), blocks=body.blocks,
                soft=call.soft,
            )  # fmt: skip

        def part(size: int, kept: Memory) -> tuple[Array, Memory]:
            origin = jnp.minimum(first, length - size)
            rows = origin + jnp.arange(size)
            renewed = None if regions.is_filled else ((rows >= first) & (rows < last))[None]
            cut = functools.partial(
                lax.dynamic_slice_in_dim, start_index=origin, slice_size=size, axis=1
            )
            window = None if size == policy.window else (call.start - origin, policy.window)
            return body.model.reread(
                cut(call.canvas), kept, Region(origin, size, renewed), sight.of(rows),
                turn=tuple(cut(angles) for angles in body.turn), window=window, blocks=body.blocks,
                soft=None if call.soft is None else cut(call.soft),
            )  # fmt: skip

        sizes = [size for size in regions.sizes(length) if size < length]
        smallest = jnp.sum(jnp.array(sizes, jnp.int32) < last - first)
        index = jnp.where(is_whole, len(sizes), smallest)
        branches = [*(functools.partial(part, size) for size in sizes), whole]
        rows, kept = lax.switch(index, branches, memory.kept)
        return rows, RegionMemory(kept, call.block_start)
