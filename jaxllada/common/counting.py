"""Sizes of a model from its configuration alone: parameters, FLOPs, bytes. Nothing is allocated."""

import dataclasses
from dataclasses import dataclass

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Number of stored weights by part of the model."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.norms + self.head

    @property
    def body(self) -> int:
        """Everything but the embedding and the head."""
        return self.attention + self.mlp + self.norms


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts the weights of a model, exactly as they are stored."""
    c = config
    width, kv_width, ffn = c.d_model, c.kv_heads * c.head_dim, c.ffn_width
    qkv = width + 2 * kv_width
    qkv_bias = qkv if c.include_bias or c.include_qkv_bias else 0
    bias = int(c.include_bias)
    attention = width * qkv + qkv_bias + width * width + bias * width
    if c.block_type == "llama":
        mlp = 3 * width * ffn + bias * (2 * ffn + width)
    else:
        inner = ffn // 2 if c.activation_type == "swiglu" else ffn
        mlp = width * ffn + inner * width + bias * (ffn + width)
    per_channel = (1 + c.norm_bias) if c.layer_norm_with_affine else 0
    norms = 2 * width * per_channel
    if c.attention_layer_norm and c.attention_layer_norm_with_affine:
        norms += (width + kv_width) * (1 + c.norm_bias)
    return ParameterCount(
        embedding=c.rows * width,
        attention=c.n_layers * attention,
        mlp=c.n_layers * mlp,
        norms=c.n_layers * norms + width * per_channel,
        head=0 if c.weight_tying else c.rows * width + bias * c.rows,
    )


def flops_per_token(config: ModelConfig, length: int, *, head_fraction: float = 1.0) -> float:
    """Floating point operations of one forward pass, per token of a sequence of `length` tokens.

    A multiply-add counts as two. `head_fraction` is the share of positions whose logits are
    computed (about one half in training on masked positions only). Training costs three times
    this: one forward and two products per weight in the backward pass.
    """
    count = count_parameters(config)
    products = count.attention + count.mlp
    scores = 2 * config.n_layers * config.d_model * length
    head = config.rows * config.d_model * head_fraction
    return 2.0 * (products + scores + head)


def checkpoint_bytes(config: ModelConfig, dtype: str = "bfloat16") -> int:
    """Size of the weight files in bytes, headers not counted."""
    return count_parameters(config).total * BYTES[dtype]


def fit(budget: int, vocab_size: int, *, template: ModelConfig) -> ModelConfig:
    """Shapes a model so that its parameter count comes as near to `budget` as it can.

    Width is a multiple of 64 with heads of width 64, depth grows with width, the feed-forward is
    about 8/3 of the width as in the released models; `template` gives every other field. Special
    ids move to the end of the vocabulary when they lie outside it.

    Raises:
        UserError: the embedding and head of the narrowest model already exceed the budget.
    """
    best: tuple[int, ModelConfig] | None = None
    for width in range(64, 16384 + 1, 64):
        for depth in range(2, 81):
            if not 32 <= width / depth <= 160:
                continue
            config = _shaped(template, width, depth, vocab_size)
            distance = abs(count_parameters(config).total - budget)
            # Among equals the square shape of the released models (128 wide per layer) wins.
            if best is None or distance < best[0]:
                best = distance, config
        if _smallest(template, width, vocab_size) > budget:
            break
    if best is None or best[0] > 0.25 * budget:
        least = count_parameters(_shaped(template, 64, 2, vocab_size)).total
        raise UserError(
            f"fit={budget} with vocab={vocab_size} cannot be met: "
            f"the smallest model has {least} parameters; use a smaller vocabulary"
        )
    return best[1]


def _shaped(template: ModelConfig, width: int, depth: int, vocab_size: int) -> ModelConfig:
    ids = {
        name: value if value is not None and value < vocab_size else vocab_size - 1 - place
        for place, name in enumerate(("mask_token_id", "eos_token_id", "pad_token_id"))
        if (value := getattr(template, name)) is not None or name == "mask_token_id"
    }
    ids["pad_token_id"] = ids["eos_token_id"]
    return dataclasses.replace(
        template,
        d_model=width,
        n_heads=width // 64,
        n_kv_heads=width // 64,
        n_layers=depth,
        mlp_hidden_size=64 * round(width * 8 / 3 / 64),
        vocab_size=vocab_size,
        embedding_size=vocab_size,
        **ids,
    )


def _smallest(template: ModelConfig, width: int, vocab_size: int) -> int:
    config = _shaped(template, width, max(2, -(-width // 160)), vocab_size)
    return count_parameters(config).total
