"""Fused Ascend kernels and the plain torch code each of them stands for.

This file, `device.py` and `probe.py` are the only ones that know torch_npu. A fused kernel is used
where `Kernels` says so; the probe decides that at start-up by comparing each with its twin here.
Facts about the kernels are from Huawei's documentation of torch_npu 2.13 (op-plugin, custom APIs).

Shape letters: B batch, Q query positions, K key positions, D width, H head width.
"""

import dataclasses
import importlib
import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Which operations run as fused kernels; none of them changes what is computed."""

    attention: bool = False
    rms_norm: bool = False
    rotary: bool = False
    swiglu: bool = False
    adamw: bool = False


PLAIN = Kernels()
FUSED = Kernels(attention=True, rms_norm=True, rotary=True, swiglu=True, adamw=True)


def _npu() -> Any:
    # Not at the top: importing torch_npu fails where there is no Ascend software.
    return importlib.import_module("torch_npu")


def unit_rms(x: Float[Tensor, "*rows D"], eps: float) -> Float[Tensor, "*rows D"]:
    """x / root(mean(x**2) + eps) in float32, rounded once to the type of `x`."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


def fused_unit_rms(x: Float[Tensor, "*rows D"], eps: float) -> Float[Tensor, "*rows D"]:
    """`unit_rms` by npu_rms_norm.

    Its weight is all ones: where the kernel rounds relative to a weight is not documented, and the
    released order is to round first.
    """
    ones = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
    return _npu().npu_rms_norm(x, ones, eps)[0]


def plain_rotate(
    x: Float[Tensor, "B Q heads H"],
    cos: Float[Tensor, "#B Q 1 half"],
    sin: Float[Tensor, "#B Q 1 half"],
) -> Float[Tensor, "B Q heads H"]:
    """Turns each pair (x[i], x[i + H/2]), in the type of `x`."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


class _FusedRotate(torch.autograd.Function):
    """npu_rotary_mul whose backward turns back: its own would keep `x`, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _npu().npu_rotary_mul(x, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        cos, sin = ctx.saved_tensors
        # Contiguous: gradients of views may arrive transposed.
        return _FusedRotate.apply(grad.contiguous(), cos, -sin), None, None


def fused_rotate(
    x: Float[Tensor, "B Q heads H"],
    cos: Float[Tensor, "#B Q 1 half"],
    sin: Float[Tensor, "#B Q 1 half"],
) -> Float[Tensor, "B Q heads H"]:
    """`plain_rotate` by npu_rotary_mul; cosine and sine get no gradient."""
    return _FusedRotate.apply(x, cos, sin)


def plain_swiglu(
    gate: Float[Tensor, "*rows D"], value: Float[Tensor, "*rows D"]
) -> Float[Tensor, "*rows D"]:
    """silu(gate) * value, rounded after each of the two."""
    return F.silu(gate) * value


def fused_swiglu(
    gate: Float[Tensor, "*rows D"], value: Float[Tensor, "*rows D"]
) -> Float[Tensor, "*rows D"]:
    """`plain_swiglu` by npu_swiglu, which rounds once and keeps two widths instead of three."""
    return _npu().npu_swiglu(torch.cat([gate, value], dim=-1), dim=-1)


def products_attention(
    q: Float[Tensor, "B Q heads H"],
    k: Float[Tensor, "B K kv_heads H"],
    v: Float[Tensor, "B K kv_heads H"],
    added: Float[Tensor, "#B #heads #Q K"] | None = None,
    dropout_rate: float = 0.0,
) -> Float[Tensor, "B Q heads H"]:
    """Attention as two products and a float32 softmax: all scores exist at once.

    `added` goes onto the scaled scores. Query head h uses key head h // (heads / kv_heads).
    """
    groups = q.shape[2] // k.shape[2]
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    if groups > 1:
        k, v = (y.repeat_interleave(groups, dim=1) for y in (k, v))
    scores = q.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[-1])
    scores = scores if added is None else scores + added.float()
    weights = F.dropout(scores.softmax(dim=-1), dropout_rate)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def fused_attention(
    q: Float[Tensor, "B Q heads H"],
    k: Float[Tensor, "B K kv_heads H"],
    v: Float[Tensor, "B K kv_heads H"],
    visible: Bool[Tensor, "#B #heads #Q K"] | None = None,
    dropout_rate: float = 0.0,
) -> Float[Tensor, "B Q heads H"]:
    """Attention by npu_fusion_attention, in the layout the products leave (no transposes)."""
    hidden = None if visible is None else hidden_keys(visible, q.shape[0], q.shape[1])
    return _npu().npu_fusion_attention(
        q,
        k,
        v,
        q.shape[2],
        "BSND",
        atten_mask=hidden,
        scale=1 / math.sqrt(q.shape[-1]),
        keep_prob=1 - dropout_rate,
        # Defines the value of rows that see nothing, such as those of a filler.
        inner_precise=0 if hidden is None else 2,
    )[0]


_HIDDEN = WeakIdKeyDictionary()


def hidden_keys(
    visible: Bool[Tensor, "#B #heads #Q K"], batch: int, queries: int
) -> Bool[Tensor, "..."]:
    """The mask [B, 1|heads, Q, K] of the fused kernel: True hides, a row for every query.

    Kept as long as `visible` lives, so that all blocks of a model share one.
    """
    shape = (batch, visible.shape[1], queries, visible.shape[3])
    if visible not in _HIDDEN or _HIDDEN[visible].shape != shape:
        _HIDDEN[visible] = visible.logical_not().expand(shape).contiguous()
    return _HIDDEN[visible]
