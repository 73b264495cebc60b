"""The mask predictor: tokens with masks in, logits for every position out.

LLaDA, arXiv:2502.09992v3, section 2.1 and figure 2: a Transformer without a causal mask that
predicts all masked tokens at once. Read this file, then `block.py`, `attention.py`, `mlp.py`.

Shape letters: B batch, L positions, R selected positions, D model width, V embedding rows.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from npu_backend import ops
from npu_backend.models.attention import Attention, Window
from npu_backend.models.block import Block, run_blocks
from npu_backend.models.head import Head, project
from npu_backend.models.initializers import initialize
from npu_backend.models.kept import Kept, Memory, Region, reread
from npu_backend.models.linear import param
from npu_backend.models.mlp import Mlp
from npu_backend.models.norm import Norm
from npu_backend.models.rope import Rotation, rotation


class MaskPredictor(nn.Module):
    """Holds the weights and describes the forward pass.

    `compute` says in which types it runs and what the backward pass recomputes, `kernels` which
    operations are fused ones of an NPU; `config` is the released `config.json`. Without a generator
    weights are left as the memory was, to be filled. Dropout is on in training mode (`train()`).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        compute: ComputeConfig | None = None,
        kernels: ops.Kernels = ops.PLAIN,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.config = config
        self.compute = compute = compute or ComputeConfig()
        self.wte = param(compute, config.rows, config.d_model)
        self.blocks = nn.ModuleList(Block(config, compute) for _ in range(config.n_layers))
        self.ln_f = Norm(config, compute, config.d_model)
        self.ff_out = None if config.weight_tying else Head(config, compute)
        self.use(kernels)
        if generator is not None:
            initialize(self, config, generator)
        self.eval()

    def use(self, kernels: ops.Kernels) -> None:
        """Chooses the kernels of every module."""
        self.kernels = kernels
        for module in self.modules():
            if isinstance(module, (Norm, Attention, Mlp)):
                module.kernels = kernels

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        *,
        attention_bias: Tensor | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        positions: Int[Tensor, "B R"] | None = None,
    ) -> Float[Tensor, "B R V"]:
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
        """
        hidden = self.hidden(
            tokens, attention_mask, attention_bias=attention_bias, position_ids=position_ids
        )
        if positions is not None:
            hidden = take_rows(hidden, positions)
        return self.head(hidden).to(self.dtype)

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        *,
        attention_bias: Tensor | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        window: Window | None = None,
        blocks: Sequence[nn.Module] | None = None,
        turn: Rotation | None = None,
        soft: Float[Tensor, "B L D"] | None = None,
    ) -> Float[Tensor, "B R D"]:
        """Returns the final normalised activations, of all positions or of a window of rows.

        `blocks` replaces the model's own. `turn` replaces `position_ids` by their angles
        (`rotation(position_ids)`), which a loop over the same positions computes once.
        `soft` is added to the embeddings.
        """
        c = self.config
        x = self.embed(tokens, soft)
        x = F.dropout(x, c.embedding_dropout if self.training else 0.0)
        if turn is None:
            length = tokens.shape[1]
            everything = torch.arange(length, device=tokens.device)[None]
            turn = self.rotation(everything if position_ids is None else position_ids)
        visible, bias = _masks(attention_mask, attention_bias)
        x = run_blocks(
            list(self.blocks) if blocks is None else blocks,
            x,
            turn,
            visible,
            bias,
            remat=self.compute.remat,
            window=window,
        )
        return self.ln_f(x)

    def reread(
        self,
        tokens: Int[Tensor, "B L"],
        kept: Memory,
        region: Region,
        visible: Bool[Tensor, "#B #heads #L K"] | None,
        *,
        turn: Rotation,
        window: Window | None = None,
        soft: Float[Tensor, "B L D"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Like `hidden` for the rows of a region that attend to what is kept of the others.

        `turn` holds the angles of the region's rows, `window` counts from the first of them. The
        memory (`memory` makes an empty one) is written to.
        """
        x = self.embed(tokens, soft)
        return self.ln_f(reread(list(self.blocks), x, turn, kept, visible, region, window))

    @staticmethod
    def region(start: int, size: int) -> Region:
        """Returns the region of `size` rows from `start` on, for `reread`."""
        return Region(start, size)

    def memory(self, batch: int, length: int) -> Memory:
        """Returns room for the keys and values of `length` positions, for `reread`."""
        shape = (batch, length, self.config.kv_heads, self.config.head_dim)
        return [Kept.empty(shape, self.dtype, self.device) for _ in self.blocks]

    def rotation(self, position_ids: Int[Tensor, "#B L"]) -> Rotation:
        """Returns the rotary angles of positions, as cosine and sine."""
        return rotation(position_ids, self.config.head_dim, self.config.rope_theta)

    def embed(
        self, tokens: Int[Tensor, "B L"], soft: Float[Tensor, "B L D"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Looks tokens up, in the activation type, and adds `soft`."""
        x = F.embedding(tokens, self.wte).to(self.dtype)
        # Rounded to the activation type before it multiplies.
        scale = torch.tensor(math.sqrt(self.config.d_model), dtype=self.dtype).item()
        x = x * scale if self.config.input_emb_norm else x
        return x if soft is None else x + soft.to(x.dtype)

    def head(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Returns float32 logits: products in the activation type, sums in float32."""
        logits = project(hidden, self.head_weight)
        if self.head_bias is not None:
            logits = logits + self.head_bias.float()
        return logits * self.logit_scale if self.config.scale_logits else logits

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations."""
        return getattr(torch, self.compute.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.wte.device

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """Weight of the output head, one row a token; the embedding itself when tied."""
        return self.wte if self.ff_out is None else self.ff_out.weight

    @property
    def head_bias(self) -> Float[Tensor, " V"] | None:
        """Bias of the output head, which only models with `include_bias` have."""
        return None if self.ff_out is None else self.ff_out.bias

    @property
    def logit_scale(self) -> float:
        """Factor on the logits: 1/sqrt(D) under `scale_logits`."""
        return 1 / math.sqrt(self.config.d_model) if self.config.scale_logits else 1.0

    def block(self, index: int) -> nn.Module:
        """Returns one block, for inspection."""
        return self.blocks[index]

    def unstacked(self) -> tuple[nn.Module, ...]:
        """Returns every block on its own, as they are kept here anyway."""
        return tuple(self.blocks)


def take_rows(x: Float[Tensor, "B L D"], positions: Int[Tensor, "B R"]) -> Float[Tensor, "B R D"]:
    """Picks positions of every row (index_select: gather is documented without bf16 on NPUs)."""
    batch, length, width = x.shape
    starts = torch.arange(batch, device=x.device)[:, None] * length
    rows = x.reshape(-1, width).index_select(0, (positions + starts).flatten())
    return rows.view(batch, -1, width)


def _masks(mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    visible = None if mask is None else (mask != 0)[:, None, None, :]
    if bias is not None and bias.dtype in (torch.bool, torch.int8):
        allowed = bias != 0
        visible = allowed if visible is None else visible & allowed
        bias = None
    return visible, bias
