"""Caches that recompute a region around the active block: prefix, dual, vicinity, block-causal.

Keys and values of all positions are kept; a call sends some rows through all layers and renews
theirs. What those rows are is said by `common.regions`; buffers are written in place.

Shape letters: G rows of a model call, S positions of the window, D model width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jaxllada.common.policy import Policy
from jaxllada.common.regions import Regions
from npu_backend.models.kept import Memory, Region
from npu_backend.sampling.reader import Body, Call


@dataclass(frozen=True)
class RegionMemory:
    """What a call finds of those before it."""

    kept: Memory
    block_start: int
    """Where the block of the call before began."""


@dataclass(frozen=True)
class RegionReader:
    """Reads the active window beside what is kept of the canvas."""

    regions: Regions

    def start(self, body: Body, policy: Policy) -> RegionMemory:
        """Room for the whole canvas."""
        memory = body.model.memory(*body.turn[0].shape[:2])
        return RegionMemory(memory, body.prompt_length)

    def read(
        self, body: Body, memory: RegionMemory, call: Call, policy: Policy
    ) -> tuple[Float[Tensor, "G S D"], RegionMemory]:
        """Returns the hidden rows of the window, and the memory after the call."""
        regions, sight = self.regions, body.sight
        first, last = regions.span(call.block_start, call.number, body.end)
        distance = call.block_start - memory.block_start
        if regions.reads_whole(call.age, call.number, distance):
            region, visible = Region(0, call.canvas.shape[1]), sight.of_all()
        else:
            first, last = max(first, 0), min(last, body.end)
            region = Region(first, last - first)
            visible = sight.of(torch.arange(first, last, device=call.canvas.device))
        rows = slice(region.start, region.start + region.size)
        states = body.model.reread(
            call.canvas[:, rows], memory.kept, region, visible,
            turn=tuple(angles[:, rows] for angles in body.turn),
            window=(call.start - region.start, policy.window),
            soft=None if call.soft is None else call.soft[:, rows],
        )  # fmt: skip
        return states, RegionMemory(memory.kept, call.block_start)
