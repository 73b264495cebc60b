"""The mask predictor: tokens with masks in, logits for every position out.

LLaDA, arXiv:2502.09992v3, section 2.1 and figure 2: a Transformer without a causal mask that
predicts all masked tokens at once. Read this file, then `block.py`, `attention.py`, `mlp.py`.

Shape letters: B batch, L positions, R selected positions, D model width, V embedding rows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.attention import Window
from jaxllada.models.block import Block, layer_of, run_blocks, stacked_blocks
from jaxllada.models.head import Head, project
from jaxllada.models.initializers import initial_weight
from jaxllada.models.kept import Memory, Region, empty_memory, reread
from jaxllada.models.linear import dropout
from jaxllada.models.norm import Norm
from jaxllada.models.packed import Packed, PackedBlocks
from jaxllada.models.rope import Rotation, rotation

AnyArray = Array | np.ndarray


class MaskPredictor(nnx.Module):
    """Holds the weights and describes the forward pass; nothing changes after construction.

    A pytree: use plain `jax.jit`, `jax.grad` and `jax.vmap` on it. `compute` says in which types
    and with which kernel it runs; `config` is the released `config.json`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        compute: ComputeConfig | None = None,
        rngs: nnx.Rngs | PRNGKeyArray,
    ):
        self.config = config
        self.compute = compute = compute or ComputeConfig()
        key = rngs.params() if isinstance(rngs, nnx.Rngs) else rngs
        embedding_key, blocks_key, head_key = jax.random.split(key, 3)
        shape = (config.rows, config.d_model)
        self.wte = nnx.Param(
            initial_weight(config, "embedding", shape, 0, embedding_key, compute.param_dtype)
        )
        self.blocks = stacked_blocks(config, compute, blocks_key)
        self.ln_f = Norm(config, compute, config.d_model)
        self.ff_out = None if config.weight_tying else Head(config, compute, key=head_key)

    def __call__(
        self,
        tokens: Int[AnyArray, "B L"],
        attention_mask: Shaped[AnyArray, "B L"] | None = None,
        *,
        attention_bias: AnyArray | None = None,
        position_ids: Int[AnyArray, "#B L"] | None = None,
        positions: Int[AnyArray, "B R"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B R V"]:
        """Returns logits in the activation type, for all positions or for `positions` only.

        Args:
            tokens: ids, with `config.mask_token_id` at the positions to predict.
            attention_mask: 1 for keys that may be seen, 0 for padding. Hidden positions still get
                logits, which mean nothing.
            attention_bias: [1|B, 1|heads, L, L]; boolean or int8 tells which keys each query sees,
                floats are added to the scores. Combined with `attention_mask`.
            position_ids: rotary positions; 0..L-1 by default, also under left padding.
            positions: rows whose logits are wanted. The head is most of the work of a small
                model, so asking for few rows is much cheaper.
            key: turns dropout on.
        """
        hidden = self.hidden(
            tokens,
            attention_mask,
            attention_bias=attention_bias,
            position_ids=position_ids,
            key=key,
        )
        if positions is not None:
            hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        return self.head(hidden).astype(self.compute.dtype)

    def hidden(
        self,
        tokens: Int[AnyArray, "B L"],
        attention_mask: Shaped[AnyArray, "B L"] | None = None,
        *,
        attention_bias: AnyArray | None = None,
        position_ids: Int[AnyArray, "#B L"] | None = None,
        window: Window | None = None,
        blocks: tuple[Block, ...] | PackedBlocks | None = None,
        turn: Rotation | None = None,
        soft: Float[Array, "B L D"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B R D"]:
        """Returns the final normalised activations, of all positions or of a window of rows.

        `blocks` replaces the stacked blocks by single ones (`unstacked()`), which CPUs run faster,
        or by packed ones (`packed.py`), which allow neither dropout nor a bias of floats.
        `turn` replaces `position_ids` by their angles (`rotation(position_ids)`), which a loop over
        the same positions computes once. `soft` is added to the embeddings.
        """
        c = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        x = self.embed(tokens, soft)
        x = dropout(x, c.embedding_dropout, keys[0])
        if turn is None:
            length = tokens.shape[1]
            turn = self.rotation(jnp.arange(length)[None] if position_ids is None else position_ids)
        visible, bias = _masks(attention_mask, attention_bias)
        if isinstance(blocks, PackedBlocks):
            assert bias is None
            assert key is None
            return self.ln_f(blocks.run(x, turn, visible, window=window)[0])
        x = run_blocks(
            self.blocks if blocks is None else blocks,
            x,
            turn,
            visible,
            bias,
            remat=self.compute.remat,
            window=window,
            key=keys[1],
        )
        return self.ln_f(x)

    def reread(
        self,
        tokens: Int[AnyArray, "B L"],
        kept: Memory,
        region: Region,
        visible: Bool[Array, "#B #heads #L K"] | None,
        *,
        turn: Rotation,
        window: Window | None = None,
        blocks: tuple[Block, ...] | PackedBlocks | None = None,
        soft: Float[Array, "B L D"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], Memory]:
        """Like `hidden` for the rows of a region that attend to what is kept of the others.

        `turn` holds the angles of the region's rows, `window` counts from the first of them.
        Returns the rows and the renewed memory (`memory` makes an empty one).
        """
        x = self.embed(tokens, soft)
        stack = self.blocks if blocks is None else blocks
        x, kept = reread(stack, x, turn, kept, visible, region, window)
        return self.ln_f(x), kept

    @staticmethod
    def region(start: Int[Array, ""] | int, size: int) -> Region:
        """Returns the region of `size` rows (static) from `start` on, for `reread`."""
        return Region(start, size)

    def memory(
        self, batch: int, length: int, blocks: tuple[Block, ...] | PackedBlocks | None = None
    ) -> Memory:
        """Returns room for the keys and values of `length` positions, for `reread`."""
        shape = (batch, self.config.kv_heads, length, self.config.head_dim)
        dtype = jnp.dtype(self.compute.dtype)
        return empty_memory(self.blocks if blocks is None else blocks, shape, dtype)

    def rotation(self, position_ids: Int[AnyArray, "#B L"]) -> Rotation:
        """Returns the rotary angles of positions, as cosine and sine."""
        return rotation(jnp.asarray(position_ids), self.config.head_dim, self.config.rope_theta)

    def embed(
        self, tokens: Int[AnyArray, "B L"], soft: Float[Array, "B L D"] | None = None
    ) -> Float[Array, "B L D"]:
        """Looks tokens up, in the activation type, and adds `soft`."""
        x = self.wte[...][tokens].astype(self.compute.dtype)
        scale = math.sqrt(self.config.d_model) if self.config.input_emb_norm else 1
        x = x * jnp.asarray(scale, x.dtype) if self.config.input_emb_norm else x
        return x if soft is None else x + soft.astype(x.dtype)

    def head(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Returns float32 logits: products in the activation type, sums in float32."""
        logits = project(hidden, self.head_weight)
        if self.head_bias is not None:
            logits = logits + self.head_bias.astype(jnp.float32)
        return logits * self.logit_scale if self.config.scale_logits else logits

    @property
    def head_weight(self) -> Float[Array, "V D"]:
        """Weight of the output head, one row a token; the embedding itself when tied."""
        return self.wte[...] if self.ff_out is None else self.ff_out.weight[...]

    @property
    def head_bias(self) -> Float[Array, " V"] | None:
        """Bias of the output head, which only models with `include_bias` have."""
        if self.ff_out is None or self.ff_out.bias is None:
            return None
        return self.ff_out.bias[...]

    @property
    def logit_scale(self) -> float:
        """Factor on the logits: 1/sqrt(D) under `scale_logits`."""
        return 1 / math.sqrt(self.config.d_model) if self.config.scale_logits else 1.0

    def block(self, index: int) -> Block:
        """Slices one block out of the stack, for inspection."""
        return layer_of(self.blocks, index)

    def packed(self) -> Packed:
        """Returns the weights as kernels of this machine read them, made once for a model."""
        return Packed.of(self)

    def unstacked(self) -> tuple[Block, ...]:
        """Returns every block on its own: a copy of the body, which a CPU walks faster."""
        return tuple(self.block(index) for index in range(self.config.n_layers))


def _masks(mask: AnyArray | None, bias: AnyArray | None) -> tuple[Array | None, Array | None]:
    visible = None if mask is None else jnp.asarray(mask != 0)[:, None, None, :]
    if bias is not None and bias.dtype in (jnp.bool_, jnp.int8):
        allowed = bias != 0
        visible = allowed if visible is None else visible & allowed
        bias = None
    if visible is not None:
        batch = visible.shape[0] if mask is None else mask.shape[0]
        visible = jnp.broadcast_to(visible, (batch, *visible.shape[1:]))
    return visible, None if bias is None else jnp.asarray(bias)
