"""Which keys a query may see: all tokens of its row, or those of no later block.

Block-causal attention (block diffusion, arXiv:2503.09573v3): positions see their own block and the
earlier ones. Blocks are those of the answer, continued to the left into the prompt, so that the
same grid holds for every row of a batch.

Shape letters: G rows of a model call, L canvas length, R queried positions.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxllada.common.policy import Policy


class Sight(NamedTuple):
    """What rows of a canvas see of each other."""

    seen: Bool[Array, "G L"]
    """Tokens, as opposed to padding."""
    origin: Int[Array, ""]
    """First position of some block."""
    block_length: int | None
    """Length of blocks under block-causal attention; None: every query sees every token."""

    @classmethod
    def of_run(
        cls, seen: Bool[Array, "G L"], prompt_length: Int[Array, ""], policy: Policy
    ) -> "Sight":
        """Sight in a sampling run."""
        return cls(seen, prompt_length, policy.block_length if policy.is_block_causal else None)

    def of_all(self) -> Bool[Array, "G 1 #R L"]:
        """Sight of every position of the canvas; one row for all where they do not differ."""
        return self.of(jnp.arange(self.seen.shape[1]))

    def of(self, rows: Int[Array, " R"] | Int[Array, "G R"]) -> Bool[Array, "G 1 #R L"]:
        """Sight of some positions, the same for the whole batch or different in each row."""
        seen = self.seen[:, None, None]
        if self.block_length is None:
            return seen
        keys = (jnp.arange(self.seen.shape[1]) - self.origin) // self.block_length
        earlier = keys <= (rows[..., None] - self.origin) // self.block_length
        return seen & (earlier[None, None] if rows.ndim == 1 else earlier[:, None])
