"""The blocks of a model laid out for a matrix unit, which computes them all in one kernel.

Where there is one (`native/blocks.py`), samplers and likelihoods use these in place of `Block`s:
the same function, up to rounding, in a third of the time.

Shape letters: N layers, B batch, L positions, R rows of a region, Q rows that come out, D model
width.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxllada.common.config.model import ModelConfig
from jaxllada.models.attention import Window
from jaxllada.models.block import Block
from jaxllada.models.linear import Linear
from jaxllada.models.rope import Rotation
from jaxllada.native import blocks as native


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedBlocks:
    """All blocks of a model; a pytree of arrays."""

    norms: tuple[Float[Array, "N D"], Float[Array, "N D"]]
    weights: tuple[native.Packed, ...]
    config: ModelConfig = field(metadata={"static": True})

    def run(
        self,
        x: Float[Array, "B R D"],
        turn: Rotation,
        visible: Bool[Array, "#B 1 #R L"] | None,
        *,
        start: Any = 0,
        span: tuple[Any, Any] | None = None,
        window: Window | None = None,
        kept: tuple[Array, ...] = (),
    ) -> tuple[Float[Array, "B Q D"], tuple[Array, ...]]:
        """Sends rows from position `start` on through all blocks.

        `span` are the rows (first, and behind the last; traced) whose keys and values are renewed,
        all by default; no others are computed but those of the window. Both count from the first
        row. `kept` holds keys and values of all layers [N, B, kv_heads, L, H].
        """
        count = x.shape[1]
        if visible is None:
            visible = jnp.ones((1, 1, 1, count), bool)
        first, last = (0, count) if span is None else span
        origin, size = (0, count) if window is None else window
        return native.run(
            x,
            (turn[0][:, :, 0], turn[1][:, :, 0]),
            visible[:, 0],
            (start, start + first, start + last, start + origin),
            self.norms,
            self.weights,
            kept,
            window=size,
            eps=self.config.rms_norm_eps,
            heads=self.config.n_heads,
            kv_heads=self.config.kv_heads,
            ffn_width=self.config.ffn_width,
        )


def can_pack(model: Any) -> bool:
    """Whether a kernel computes this model here: blocks as LLaDA has them (RMS norms, SwiGLU, no
    biases, no adapters), in float32 or bfloat16, and a CPU for which `native/blocks.py` has one."""
    if not isinstance(getattr(model, "blocks", None), Block):
        return False
    config, compute, blocks = model.config, model.compute, model.blocks
    norms = (blocks.attn_norm, blocks.ff_norm)
    is_known = (
        config.block_type == "llama"
        and config.layer_norm_type == "rms"
        and config.activation_type == "silu"
        and blocks.attention.q_norm is None
        and (config.rope_full_precision or compute.dtype == "float32")
        and compute.attention in ("auto", "xla")
        and all(type(layer) is Linear and layer.bias is None for layer in _layers(blocks))
        and all(norm.weight is not None and norm.bias is None for norm in norms)
    )
    return is_known and native.has_kernel(compute.dtype)


@jax.jit
def pack(model: Any) -> PackedBlocks:
    """Lays the blocks of a model out, if it `can_pack`: a copy of the body in three quarters of
    its size (float32) or in its size (bfloat16)."""
    dtype = jnp.dtype(model.compute.dtype)
    norms = (model.blocks.attn_norm, model.blocks.ff_norm)
    attention, ffn = (norm.weight[...].astype(dtype) for norm in norms)
    weights = (layer.kernel[...].astype(dtype) for layer in _layers(model.blocks))
    packed = tuple(native.pack(weight) for weight in weights)
    return PackedBlocks((attention, ffn), packed, model.config)


def _layers(blocks: Block) -> tuple[Linear, ...]:
    attention, mlp = blocks.attention, blocks.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.attn_out)
    return (*projections, mlp.ff_proj, mlp.up_proj, mlp.ff_out)
