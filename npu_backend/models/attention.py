"""Self-attention of the mask predictor (LLaDA, arXiv:2502.09992v3, section 2.1).

Shape letters: B batch, L positions, Q query positions, D model width, H head width.
"""

import functools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend import ops
from npu_backend.models.kernels import attend
from npu_backend.models.linear import Linear
from npu_backend.models.norm import Norm
from npu_backend.models.rope import Rotation, rotate

Window = tuple[Int[Tensor, ""] | int, int]
"""First row (may be on the device) and number of rows of a slice of positions."""


def take_window(x: Tensor, window: Window | None, axis: int = 1) -> Tensor:
    """Slices rows `window` out of `axis`; None takes all, as does an axis of length one."""
    if window is None or x.shape[axis] == 1:
        return x
    first, count = window
    if isinstance(first, int):
        return x.narrow(axis, first, count)
    return x.index_select(axis, first + torch.arange(count, device=x.device))


class Attention(nn.Module):
    """Grouped-query attention without a causal mask; weights are named as in the release."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        super().__init__()
        self.config, self.compute, self.kernels = config, compute, ops.PLAIN
        width, kv_width = config.d_model, config.kv_heads * config.head_dim
        bias = config.include_bias or config.include_qkv_bias
        self.q_proj = Linear(compute, (width, width), bias=bias)
        self.k_proj = Linear(compute, (width, kv_width), bias=bias)
        self.v_proj = Linear(compute, (width, kv_width), bias=bias)
        self.attn_out = Linear(compute, (width, width), bias=config.include_bias)
        affine = config.attention_layer_norm_with_affine
        has_norm = config.attention_layer_norm
        self.q_norm = Norm(config, compute, width, affine=affine) if has_norm else None
        self.k_norm = Norm(config, compute, kv_width, affine=affine) if has_norm else None

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        turn: Rotation,
        visible: Bool[Tensor, "#B #heads #L L"] | None = None,
        bias: Float[Tensor, "#B #heads #L L"] | None = None,
        *,
        window: Window | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Mixes positions; with a window, only its rows ask and come out.

        `visible[b, h, q, k]` lets query q see key k, `bias` is added to the scores; None shows
        everything. Attention weights are dropped in training mode.
        """
        here: Rotation = (take_window(turn[0], window), take_window(turn[1], window))
        q, k, v = self.queries(take_window(x, window), here), self.keys(x, turn), self.values(x)
        visible = None if visible is None else take_window(visible, window, axis=2)
        bias = None if bias is None else take_window(bias, window, axis=2)
        mix = functools.partial(
            attend,
            implementation=self.compute.attention,
            kernels=self.kernels,
            dropout_rate=self.config.attention_dropout if self.training else 0.0,
        )
        if self.compute.remat == "attention":
            mix = functools.partial(checkpoint, mix, use_reentrant=False)
        return self.output(mix(q, k, v, visible=visible, bias=bias))

    def queries(self, x: Float[Tensor, "B L D"], turn: Rotation) -> Float[Tensor, "B L heads H"]:
        """Returns the rotated queries of these rows."""
        q = self.q_proj(x)
        return self._turned(q if self.q_norm is None else self.q_norm(q), turn)

    def keys(self, x: Float[Tensor, "B L D"], turn: Rotation) -> Float[Tensor, "B L kv_heads H"]:
        """Returns the rotated keys of these rows: they depend on no other row."""
        k = self.k_proj(x)
        return self._turned(k if self.k_norm is None else self.k_norm(k), turn)

    def values(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L kv_heads H"]:
        """Returns the values of these rows."""
        return self._heads(self.v_proj(x))

    def look(
        self,
        q: Float[Tensor, "B Q heads H"],
        k: Float[Tensor, "B K kv_heads H"],
        v: Float[Tensor, "B K kv_heads H"],
        visible: Bool[Tensor, "#B #heads #Q K"] | None,
    ) -> Float[Tensor, "B Q D"]:
        """Attends to keys and values that are kept."""
        kernel = self.compute.attention
        out = attend(q, k, v, visible=visible, implementation=kernel, kernels=self.kernels)
        return self.output(out)

    def output(self, mixed: Float[Tensor, "B Q heads H"]) -> Float[Tensor, "B Q D"]:
        """Joins the heads."""
        return self.attn_out(mixed.flatten(2))

    def _turned(self, y: Float[Tensor, "B L width"], turn: Rotation) -> Tensor:
        # Norms run over the whole width, before the heads are split.
        return rotate(
            self._heads(y),
            turn,
            full_precision=self.config.rope_full_precision,
            kernels=self.kernels,
        )

    def _heads(self, y: Float[Tensor, "B L width"]) -> Float[Tensor, "B L some_heads H"]:
        return y.unflatten(-1, (-1, self.config.head_dim))
