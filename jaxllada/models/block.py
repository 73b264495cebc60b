"""One pre-norm Transformer block, and the stack of them as one module with a leading layer axis.

Shape letters: B batch, L positions, Q rows that come out, D model width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.attention import Attention, Window, take_window
from jaxllada.models.linear import PRODUCT, dropout
from jaxllada.models.mlp import Mlp
from jaxllada.models.norm import Norm
from jaxllada.models.rope import Rotation


class Block(nnx.Module):
    """x + attention(norm(x)), then the same with the feed-forward part."""

    def __init__(
        self,
        config: ModelConfig,
        compute: ComputeConfig,
        *,
        layer: Int[Array, ""] | int,
        key: PRNGKeyArray,
    ):
        self.config = config
        attention_key, mlp_key = jax.random.split(key)
        self.attn_norm = Norm(config, compute, config.d_model)
        self.attention = Attention(config, compute, layer=layer, key=attention_key)
        self.ff_norm = Norm(config, compute, config.d_model)
        self.mlp = Mlp(config, compute, layer=layer, key=mlp_key)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        turn: Rotation,
        visible: Bool[Array, "#B #heads #L L"] | None = None,
        bias: Float[Array, "#B #heads #L L"] | None = None,
        *,
        window: Window | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B Q D"]:
        """Arguments as in `Attention`; with a window, only its rows come out."""
        rate = self.config.residual_dropout
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        with jax.named_scope("attention"):
            mixed = self.attention(
                self.attn_norm(x), turn, visible, bias, window=window, key=keys[0]
            )
            x = take_window(x, window) + dropout(mixed, rate, keys[1])
        with jax.named_scope("mlp"):
            return x + dropout(self.mlp(self.ff_norm(x)), rate, keys[2])


def stacked_blocks(config: ModelConfig, compute: ComputeConfig, key: PRNGKeyArray) -> Block:
    """Returns all blocks as one `Block` whose weights carry a leading axis [n_layers]."""

    def make(layer: Int[Array, ""], key: PRNGKeyArray) -> Block:
        return Block(config, compute, layer=layer, key=key)

    return jax.vmap(make)(jnp.arange(config.n_layers), jax.random.split(key, config.n_layers))


def layer_of(blocks: Block, index: Int[Array, ""] | int) -> Block:
    """Slices one block out of the stack."""
    return jax.tree.map(lambda weights: weights[index], blocks)


def run_blocks(
    blocks: Block | tuple[Block, ...],
    x: Float[Array, "B L D"],
    turn: Rotation,
    visible: Bool[Array, "#B #heads #L L"] | None,
    bias: Float[Array, "#B #heads #L L"] | None,
    *,
    remat: str,
    window: Window | None,
    key: PRNGKeyArray | None,
) -> Float[Array, "B Q D"]:
    """Applies a stack by `lax.scan`, or a tuple of single blocks one after the other.

    A window is taken in the last block: below it every position is needed.
    """

    def apply(block: Block, x: Array, index: Array | int, window: Window | None = None) -> Array:
        block_key = None if key is None else jax.random.fold_in(key, index)
        return block(x, turn, visible, bias, window=window, key=block_key)

    if remat in ("full", "dots"):
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
        step = jax.checkpoint(apply, policy=policy if remat == "dots" else None)
    else:
        step = apply
    if isinstance(blocks, tuple):
        for index, block in enumerate(blocks[:-1]):
            x = step(block, x, index)
        return apply(blocks[-1], x, len(blocks) - 1, window)

    depth = jax.tree.leaves(blocks)[0].shape[0]
    if window is None:
        inputs = (blocks, jnp.arange(depth))
        return jax.lax.scan(lambda x, item: (step(item[0], x, item[1]), None), x, inputs)[0]
    # Indexing instead of slicing the stack: no copy of all but the last layer.
    x = jax.lax.fori_loop(0, depth - 1, lambda i, x: step(layer_of(blocks, i), x, i), x)
    return apply(layer_of(blocks, depth - 1), x, depth - 1, window)
