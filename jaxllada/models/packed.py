"""Weights laid out for a matrix unit: all blocks in one kernel, and the head.

Where there is one (`native/blocks.py`), samplers and likelihoods use these in place of `Block`s:
the same function, up to rounding, in a third of the time. Arrays never change, so what was made of
them holds as long as they live.

Shape letters: N layers, B batch, R rows of a region, K positions attended to, Q rows that come out,
D model width.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxllada.common.config.model import ModelConfig
from jaxllada.models.attention import Window
from jaxllada.models.block import Block
from jaxllada.models.linear import Linear
from jaxllada.models.rope import Rotation
from jaxllada.native import blocks as native
from jaxllada.native.head import PackedHead, can_pack_head, pack_head


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedBlocks:
    """All blocks of a model; a pytree of arrays."""

    norms: tuple[Any, Any]
    """Weights [N, D] of the norms before attention and before the feed-forward part."""
    weights: tuple[Any, ...]
    """`native.Packed`: queries, keys, values, attention output, gate, up, down."""
    config: ModelConfig = field(metadata={"static": True})

    def run(
        self,
        x: Float[Array, "B R D"],
        turn: Rotation,
        visible: Bool[Array, "#B 1 #R K"] | None,
        *,
        start: Any = 0,
        span: tuple[Any, Any] | None = None,
        window: Window | None = None,
        kept: tuple[Array, ...] = (),
    ) -> tuple[Float[Array, "B Q D"], tuple[Array, ...]]:
        """Sends rows from position `start` on through all blocks.

        `span` are the rows (first, and behind the last; traced) whose keys and values are renewed,
        all by default; no others are computed but those of the window. Both count from the first
        row. `kept` holds keys and values of all layers [N, B, kv_heads, K, H].
        """
        count = x.shape[1]
        if visible is None:
            visible = jnp.ones((1, 1, 1, kept[0].shape[3] if kept else count), bool)
        assert visible.shape[1] == 1, "all heads see the same"
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


class Packed(NamedTuple):
    """What kernels read of a model; None where there is none, or one that reads weights as they
    are."""

    blocks: PackedBlocks | None = None
    head: PackedHead | None = None

    @classmethod
    def of(cls, model: Any, *, with_blocks: bool = True) -> "Packed":
        """Lays the weights of a `MaskPredictor` out, once as long as it keeps them."""
        if not isinstance(getattr(model, "blocks", None), Block):
            return cls()
        blocks = head = None
        if with_blocks and can_pack(model):
            blocks = _once(pack, model, model, model.blocks)
        weight = model.head_weight
        if weight.dtype == model.compute.dtype and can_pack_head(weight):
            owner = model.wte if model.ff_out is None else model.ff_out.weight
            head = _once(pack_head, weight, model, owner)
        return cls(blocks, head)


def can_pack(model: Any) -> bool:
    """Whether a kernel computes this model here: blocks as LLaDA has them (RMS norms, SwiGLU, no
    biases, no adapters), in float32 or bfloat16, and a CPU for which `native/blocks.py` has one."""
    config, compute, blocks = model.config, model.compute, model.blocks
    norms = (blocks.attn_norm, blocks.ff_norm)
    is_known = (
        config.block_type == "llama"
        and config.layer_norm_type == "rms"
        and config.activation_type == "silu"
        and max(config.d_model, config.ffn_width) <= native.WIDEST
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


_made: dict[tuple[Any, ...], Any] = {}


def _once(make: Callable[[Any], Any], argument: Any, model: Any, weights: Any) -> Any:
    arrays = jax.tree.leaves(weights)
    name = (make.__name__, model.config, model.compute, *map(id, arrays))
    if name not in _made:
        _made[name] = make(argument)
        # The first weight that goes takes it along: another may get its id.
        for array in arrays:
            weakref.finalize(array, _made.pop, name, None)
    return _made[name]


def _layers(blocks: Block) -> tuple[Any, ...]:
    attention, mlp = blocks.attention, blocks.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.attn_out)
    return (*projections, mlp.ff_proj, mlp.up_proj, mlp.ff_out)
