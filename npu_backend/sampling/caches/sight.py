"""Which keys a query may see: all tokens of its row, or those of no later block.

Block-causal attention (block diffusion, arXiv:2503.09573v3): positions see their own block and the
earlier ones. Blocks are those of the answer, continued to the left into the prompt, so that the
same grid holds for every row of a batch.

Shape letters: G rows of a model call, L canvas length, R queried positions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jaxllada.common.policy import Policy


@dataclass
class Sight:
    """What rows of a canvas see of each other."""

    seen: Bool[Tensor, "G L"] | None
    """Tokens, as opposed to padding; None: there is no padding."""
    blocks: Int[Tensor, " L"] | None = None
    """Number of each position's block under block-causal attention; None: all see all tokens."""

    @classmethod
    def of_run(
        cls, seen: Bool[Tensor, "G L"] | None, known: Bool[Tensor, "B L"], prompt_length: int,
        policy: Policy,
    ) -> "Sight":  # fmt: skip
        """Sight in a sampling run on a canvas shaped like `known`."""
        if not policy.is_block_causal:
            return cls(seen)
        places = range(-prompt_length, known.shape[1] - prompt_length)
        numbers = [place // policy.block_length for place in places]
        return cls(seen, torch.tensor(numbers, device=known.device))

    def of_all(self) -> Bool[Tensor, "#G 1 #R L"] | None:
        """Sight of every position of the canvas; one row for all where they do not differ."""
        return self._of(self.blocks)

    def of(self, rows: Int[Tensor, " R"] | Int[Tensor, "G R"]) -> Bool[Tensor, "#G 1 #R L"] | None:
        """Sight of some positions, the same for the whole batch or different in each row."""
        if self.blocks is None:
            return self._of(None)
        return self._of(self.blocks.index_select(0, rows.flatten()).view(rows.shape))

    def _of(self, own: Tensor | None) -> Tensor | None:
        seen = None if self.seen is None else self.seen[:, None, None]
        if own is None or self.blocks is None:
            return seen
        earlier = self.blocks <= own[..., None]
        earlier = earlier[None, None] if own.dim() == 1 else earlier[:, None]
        return earlier if seen is None else seen & earlier
