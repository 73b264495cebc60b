"""Attention kernels behind one function: softmax(q k^T / sqrt(H) + bias) v, softmax in float32.

Shape letters: B batch, Q query positions, K key positions, H head width.
"""

import contextlib

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from jaxllada.common.errors import UserError
from npu_backend import ops


def attend(
    q: Float[Tensor, "B Q heads H"],
    k: Float[Tensor, "B K kv_heads H"],
    v: Float[Tensor, "B K kv_heads H"],
    *,
    visible: Bool[Tensor, "#B #heads #Q K"] | None = None,
    bias: Float[Tensor, "#B #heads #Q K"] | None = None,
    implementation: str = "auto",
    kernels: ops.Kernels = ops.PLAIN,
    dropout_rate: float = 0.0,
) -> Float[Tensor, "B Q heads H"]:
    """Attends from every query to every visible key.

    Query head h uses key head h // (heads / kv_heads). `implementation` is a `ComputeConfig`
    value: `auto` takes the fused kernel on NPUs where `kernels` has it and torch's own on CPUs and
    GPUs, `xla` two plain products on any device, `cudnn` that of NVIDIA GPUs.

    Raises:
        UserError: the named kernel does not exist on this machine or cannot do what is asked.
    """
    on_npu = q.device.type == "npu"
    if implementation == "auto" and kernels.attention and bias is None:
        return ops.fused_attention(q, k, v, visible, dropout_rate)
    if implementation == "splash":
        raise UserError("attention='splash' needs a TPU, which torch does not drive: use 'auto'")
    if implementation == "cudnn" and (q.device.type != "cuda" or q.dtype == torch.float32):
        raise UserError(
            f"attention='cudnn' needs an NVIDIA GPU and a 16-bit dtype, "
            f"not {q.device.type} and {q.dtype}: use attention='auto'"
        )
    added = _added(visible, bias, q.dtype)
    # On an NPU torch's own function would be the fused kernel again.
    if implementation == "xla" or on_npu:
        return ops.products_attention(q, k, v, added, dropout_rate)
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    cudnn = sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
    with cudnn if implementation == "cudnn" else contextlib.nullcontext():
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=added, dropout_p=dropout_rate, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.transpose(1, 2)


def _added(visible: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores; finite, so that a row that sees nothing gives an average."""
    if visible is None:
        return None if bias is None else bias.to(dtype)
    never = torch.finfo(dtype).min
    if bias is None:
        bias = torch.zeros((), dtype=dtype, device=visible.device)
    return torch.where(visible, bias.to(dtype), never)
