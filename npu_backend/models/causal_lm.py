"""The autoregressive twin: transformers' Qwen2 in the place of a mask predictor, its control.

Qwen2 (arXiv:2407.10671v4, section 2.2). Position i predicts the token behind it, so a row is
shifted by one (`common/data/next_token.py`) and its logits are those of its own tokens. This file
is the only one that needs transformers, and is imported when such a model is.

Shape letters: B batch, L positions, K positions kept and new, R selected positions, D model width,
V embedding rows, H head width.
"""

import contextlib
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.qwen2 import to_qwen2
from jaxllada.common.errors import UserError
from npu_backend import ops
from npu_backend.models.head import project
from npu_backend.models.initializers import initialize
from npu_backend.models.mask_predictor import MaskPredictor, take_rows
from npu_backend.models.rope import rotation

try:
    from transformers import Qwen2Config, Qwen2ForCausalLM
except ImportError:
    raise UserError(
        "model_type='qwen2' runs on transformers here, which is not installed: "
        "pip install 'jaxllada[hf]'"
    ) from None


class CausalLM(MaskPredictor):
    """A `MaskPredictor` whose positions see only themselves and those before them.

    The modules are those of transformers, below `network`, under their own names.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        compute: ComputeConfig | None = None,
        kernels: ops.Kernels = ops.PLAIN,
        generator: torch.Generator | None = None,
    ):
        nn.Module.__init__(self)
        self.config = config
        self.compute = compute = compute or ComputeConfig()
        values = to_qwen2(config)
        # Told of a padding token, transformers would not train its row, which is that of EOS here.
        for key in ("torch_dtype", "dtype", "architectures", "model_type", "pad_token_id"):
            values.pop(key, None)
        theirs = Qwen2Config(**values, attn_implementation="sdpa")  # pyright: ignore
        self.network: Any = Qwen2ForCausalLM(theirs).to(getattr(torch, compute.param_dtype))
        if config.weight_tying:
            self.network.lm_head = None  # the embedding serves, and stays one tensor
        # A table of angles would have no memory when a model is made without any.
        self.network.model.rotary_emb = _Rotary(config)
        if compute.remat == "full":
            self.network.gradient_checkpointing_enable({"use_reentrant": False})
        elif compute.remat != "none":
            raise UserError(f"remat={compute.remat!r}: model_type='qwen2' takes none or full here")
        self.use(kernels)
        if generator is not None:
            initialize(self, config, generator)
        self.eval()

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        *,
        attention_bias: Tensor | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "B R D"]:
        """See `MaskPredictor.hidden`. A boolean `attention_bias` narrows the causal mask."""
        assert not options, f"an autoregressive model has no {', '.join(options)}"
        visible = None
        if attention_mask is not None or attention_bias is not None:
            length = tokens.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
            visible = causal[None, None]
            if attention_bias is not None:
                visible = visible & attention_bias
            if attention_mask is not None:
                visible = visible & (attention_mask != 0)[:, None, None, :]
            # A row that sees nothing would be NaN.
            visible = visible | torch.eye(length, dtype=torch.bool, device=tokens.device)
        return self.run(tokens, visible, position_ids)

    def run(
        self,
        tokens: Int[Tensor, "B L"],
        visible: Bool[Tensor, "B 1 L K"] | None,
        position_ids: Int[Tensor, "#B L"] | None,
        kept: Any = None,
    ) -> Float[Tensor, "B L D"]:
        """Sends tokens through the blocks, behind the keys and values in the cache `kept`."""
        with self._precision():
            found = self.network.model(
                input_ids=tokens,
                attention_mask=visible,
                position_ids=position_ids,
                past_key_values=kept,
                use_cache=kept is not None,
            )
        return found.last_hidden_state.to(self.dtype)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        *,
        attention_bias: Tensor | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        positions: Int[Tensor, "B R"] | None = None,
    ) -> Float[Tensor, "B R V"]:
        """Returns logits in the activation type, for all positions or for `positions` only."""
        hidden = self.hidden(
            tokens, attention_mask, attention_bias=attention_bias, position_ids=position_ids
        )
        if positions is not None:
            hidden = take_rows(hidden, positions)
        return self.head(hidden).to(self.dtype)

    def head(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Returns float32 logits."""
        return project(hidden, self.head_weight)

    @property
    def wte(self) -> Float[Tensor, "V D"]:
        """The embedding."""
        return self.network.model.embed_tokens.weight

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, as transformers has them."""
        return self.network.model.layers

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """Weight of the output head, one row a token; the embedding itself when tied."""
        return self.wte if self.network.lm_head is None else self.network.lm_head.weight

    @property
    def head_bias(self) -> None:
        """Qwen2 has none."""
        return None

    def _precision(self) -> Any:
        """Matrix products in the activation type where weights are stored in another."""
        if self.compute.dtype == self.compute.param_dtype:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


class _Rotary(nn.Module):
    """Cosines and sines for transformers' blocks, by the arithmetic of this project."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, position_ids: Int[Tensor, "B L"]) -> tuple[Tensor, Tensor]:
        """Returns both [B, L, H] in the type of `x`."""
        turn = rotation(position_ids, self.config.head_dim, self.config.rope_theta)
        cos, sin = (torch.cat([part, part], dim=-1)[:, :, 0].to(x.dtype) for part in turn)
        return cos, sin
