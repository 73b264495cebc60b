"""One pre-norm Transformer block, and how a stack of them is walked.

Shape letters: B batch, L positions, Q rows that come out, D model width.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend.models.attention import Attention, Window, take_window
from npu_backend.models.mlp import Mlp
from npu_backend.models.norm import Norm
from npu_backend.models.rope import Rotation


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward part."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        super().__init__()
        self.config = config
        self.attn_norm = Norm(config, compute, config.d_model)
        self.attention = Attention(config, compute)
        self.ff_norm = Norm(config, compute, config.d_model)
        self.mlp = Mlp(config, compute)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        turn: Rotation,
        visible: Bool[Tensor, "#B #heads #L L"] | None = None,
        bias: Float[Tensor, "#B #heads #L L"] | None = None,
        *,
        window: Window | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Arguments as in `Attention`; with a window, only its rows come out."""
        rate = self.config.residual_dropout if self.training else 0.0
        mixed = self.attention(self.attn_norm(x), turn, visible, bias, window=window)
        x = take_window(x, window) + F.dropout(mixed, rate)
        return x + F.dropout(self.mlp(self.ff_norm(x)), rate)


def run_blocks(
    blocks: Sequence[nn.Module],
    x: Float[Tensor, "B L D"],
    turn: Rotation,
    visible: Bool[Tensor, "#B #heads #L L"] | None,
    bias: Float[Tensor, "#B #heads #L L"] | None,
    *,
    remat: str,
    window: Window | None,
) -> Float[Tensor, "B Q D"]:
    """Applies the blocks one after the other.

    A window is taken in the last block: below it every position is needed.
    """
    for index, block in enumerate(blocks):
        own = window if index == len(blocks) - 1 else None
        step: Any = block
        if remat in ("full", "dots") and torch.is_grad_enabled():
            context = {"context_fn": _keeping_products} if remat == "dots" else {}
            step = functools.partial(checkpoint, block, use_reentrant=False, **context)
        x = step(x, turn, visible, bias, window=own)
    return x


_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.linear.default, _aten.matmul.default}


def _keeping_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keeps outputs of dense layers, whose right side is a matrix; not attention scores."""
    is_dense = op in _PRODUCTS and all(x.dim() == 2 for x in args[1:] if isinstance(x, Tensor))
    return CheckpointPolicy.MUST_SAVE if is_dense else CheckpointPolicy.PREFER_RECOMPUTE
