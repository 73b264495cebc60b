"""Initial weights, by the schemes of the released class (`init_fn`).

The distributions are matched, not the random bits: another framework's generator cannot be
reproduced. Truncated normals end at three (or `init_cutoff_factor`) standard deviations.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError

Role = Literal["embedding", "in", "attention_out", "mlp_out", "head"]


def initial_weight(
    config: ModelConfig,
    role: Role,
    shape: tuple[int, ...],
    layer: Int[Array, ""] | int,
    key: PRNGKeyArray,
    dtype: str,
) -> Float[Array, "..."]:
    """Draws one weight matrix; `shape` is [in, out] ([rows, width] for the embedding).

    `layer` counts blocks from 0 and may be traced; only the projections back into the residual
    stream depend on it, and only under `mitchell`.

    Raises:
        UserError: `full_megatron` with llama blocks, which the released class refuses as well.
    """
    scheme, width = config.init_fn, config.d_model
    fan_in = width if role == "embedding" else shape[0]
    factor = 0.5 * math.sqrt(width) if role == "embedding" and config.scale_logits else 1.0
    if scheme == "mitchell":
        std = jnp.float32(factor / math.sqrt(fan_in))
        if role in ("attention_out", "mlp_out"):
            std = std / jnp.sqrt(2.0 * (jnp.asarray(layer, jnp.float32) + 1))
        return _truncated(key, shape, std, 3.0).astype(dtype)
    if scheme == "normal":
        std = config.init_std * factor
        # The released class marks the feed-forward output as residual, not the attention output.
        # Qwen2's class draws all weights alike.
        is_scaled = role == "mlp_out" and not config.is_causal
        scale = 1 / math.sqrt(2 * config.n_layers) if is_scaled else 1.0
        if config.init_cutoff_factor is not None:
            return (_truncated(key, shape, std, config.init_cutoff_factor) * scale).astype(dtype)
        return (jax.random.normal(key, shape) * std * scale).astype(dtype)
    if scheme == "kaiming_normal":
        # Fan-in of a torch weight [out, in]; for an embedding [rows, width] that is the width.
        return (jax.random.normal(key, shape) * math.sqrt(2 / fan_in)).astype(dtype)
    if scheme == "fan_in":
        return (jax.random.normal(key, shape) * factor / math.sqrt(fan_in)).astype(dtype)
    if config.block_type == "llama":
        raise UserError(
            "init_fn='full_megatron' cannot initialise block_type='llama': "
            "use 'mitchell' or 'normal'"
        )
    std = {
        "embedding": config.init_std,
        "in": config.init_std,
        "attention_out": config.init_std / math.sqrt(2.0 * config.n_layers),
        "mlp_out": config.init_std / math.sqrt(2.0 * config.n_layers),
        "head": width**-0.5,
    }[role]
    return _truncated(key, shape, std, config.init_cutoff_factor or 3.0).astype(dtype)


def _truncated(
    key: PRNGKeyArray, shape: tuple[int, ...], std: Float[Array, ""] | float, cutoff: float
) -> Float[Array, "..."]:
    return jax.random.truncated_normal(key, -cutoff, cutoff, shape) * std
