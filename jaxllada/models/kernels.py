"""Attention kernels behind one function: softmax(q k^T / sqrt(H) + bias) v, softmax in float32.

Shape letters: B batch, Q query positions, K key positions, H head width.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxllada.common.errors import UserError
from jaxllada.models.linear import dropout

NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a hidden key: finite, so that a row that sees nothing gives an average, not NaN."""


def attend(
    q: Float[Array, "B Q heads H"],
    k: Float[Array, "B ... H"],
    v: Float[Array, "B ... H"],
    *,
    visible: Bool[Array, "#B #heads #Q K"] | None = None,
    bias: Float[Array, "#B #heads #Q K"] | None = None,
    implementation: str = "auto",
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    heads_first: bool = False,
) -> Float[Array, "B Q heads H"]:
    """Attends from every query to every visible key.

    Keys and values are [B, K, kv_heads, H], or [B, kv_heads, K, H] if `heads_first`. Query head h
    uses key head h // (heads / kv_heads). `implementation` is a `ComputeConfig` value: `auto` takes
    cuDNN on NVIDIA GPUs where it can (16-bit types, no dropout) and XLA otherwise; `splash` is the
    TPU kernel of jax.experimental.pallas.

    Raises:
        UserError: the named kernel does not exist on this machine or cannot do what is asked.
    """
    has_dropout = key is not None and dropout_rate > 0
    platform = jax.default_backend()
    if implementation == "auto":
        can_cudnn = platform == "gpu" and q.dtype != jnp.float32 and not has_dropout
        implementation = "cudnn" if can_cudnn and q.shape[-1] % 8 == 0 else "xla"
    if implementation == "xla":
        if not heads_first:
            k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        return _xla(q, k, v, visible, bias, dropout_rate if has_dropout else 0.0, key)
    if heads_first:
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if has_dropout:
        raise UserError(f"attention='{implementation}' has no dropout: use attention='xla'")
    if implementation == "cudnn":
        if platform != "gpu" or q.dtype == jnp.float32:
            raise UserError(
                f"attention='cudnn' needs an NVIDIA GPU and a 16-bit dtype, "
                f"not {platform} and {q.dtype}: use attention='xla'"
            )
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias, mask=visible, implementation="cudnn"
        )
    if platform != "tpu" or bias is not None or q.shape[1] != k.shape[1]:
        raise UserError(
            f"attention='splash' needs a TPU and no attention_bias, not {platform}: "
            "use attention='xla'"
        )
    return _splash(q, k, v, visible)


def _xla(
    q: Array, k: Array, v: Array, visible: Array | None, bias: Array | None,
    dropout_rate: float, key: PRNGKeyArray | None,
) -> Array:  # fmt: skip
    batch, queries, heads, width = q.shape
    groups = heads // k.shape[1]
    # Queries that share a key head stand behind each other: one batched product per key head.
    q = jnp.swapaxes(q, 1, 2).reshape(batch, -1, groups * queries, width)
    q = q * jnp.asarray(1 / math.sqrt(width), q.dtype) if q.dtype == jnp.float32 else q
    scores = jnp.einsum("bnqh,bnkh->bnqk", q, k, preferred_element_type=jnp.float32)
    if q.dtype != jnp.float32:
        scores = scores / math.sqrt(width)
    if bias is not None:
        scores = scores + _by_key_head(bias.astype(jnp.float32), groups, queries)
    if visible is not None:
        scores = jnp.where(_by_key_head(visible, groups, queries), scores, NEVER)
    scores = scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Dividing the short output instead of the long weights saves a pass over the scores.
    if dropout_rate:
        weights = dropout(weights, dropout_rate, key)
    out = jnp.einsum(
        "bnqk,bnkh->bnqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / total).astype(v.dtype).reshape(batch, heads, queries, width)
    return jnp.swapaxes(out, 1, 2)


def _by_key_head(x: Array, groups: int, queries: int) -> Array:
    """[B, heads or 1, Q or 1, K] as [B, kv_heads or 1, groups * Q or 1, K]."""
    batch, heads, own_queries, keys = x.shape
    if groups == 1 or heads == own_queries == 1:
        return x
    x = jnp.broadcast_to(x, (batch, heads, queries, keys))
    if heads == 1:
        return jnp.tile(x, (1, 1, groups, 1))
    return x.reshape(batch, -1, groups * queries, keys)


def _splash(q: Array, k: Array, v: Array, visible: Array | None) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    if visible is not None and visible.shape[1:3] != (1, 1):
        raise UserError("attention='splash' takes a key mask [B, L] only: use attention='xla'")
    length, heads = q.shape[1], q.shape[2]
    groups = heads // k.shape[2]
    everything = masks.MultiHeadMask([masks.FullMask((length, length)) for _ in range(heads)])
    run = kernel.make_splash_mha_single_device(everything)
    k, v = (jnp.repeat(y, groups, axis=2) for y in (k, v))
    q, k, v = (jnp.moveaxis(y, 1, 2) for y in (q / math.sqrt(q.shape[-1]), k, v))
    if visible is None:
        out = jax.vmap(run)(q, k, v)
    else:
        # Hidden keys form a segment of their own that no query belongs to.
        keys = jnp.where(visible[:, 0, 0], 0, 1).astype(jnp.int32)
        segments = kernel.SegmentIds(q=jnp.zeros_like(keys), kv=keys)
        out = jax.vmap(run)(q, k, v, segments)
    return jnp.moveaxis(jnp.asarray(out), 1, 2).astype(v.dtype)
