"""Named model shapes: the published ones, and two small ones for tests and first steps."""

import dataclasses

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.qwen2 import twin_of
from jaxllada.common.errors import UserError, nearest

# LLaDA-8B as released (arXiv:2502.09992v3, appendix B.2); the others change its size only.
_LLADA_8B = ModelConfig(
    d_model=4096,
    n_heads=32,
    n_kv_heads=32,
    n_layers=32,
    mlp_hidden_size=12288,
    activation_type="silu",
    block_type="llama",
    rope=True,
    rope_theta=500000.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
    embedding_dropout=0.0,
    layer_norm_type="rms",
    bias_for_layer_norm=False,
    max_sequence_length=4096,
    vocab_size=126464,
    embedding_size=126464,
    weight_tying=False,
    eos_token_id=126081,
    pad_token_id=126081,
    mask_token_id=126336,
    init_device="meta",
    init_fn="mitchell",
    precision="amp_bf16",
)


def _small(**changes: int) -> ModelConfig:
    rows = changes["vocab_size"]
    ids = {"mask_token_id": rows - 1, "eos_token_id": rows - 2, "pad_token_id": rows - 2}
    shape = {"n_kv_heads": changes["n_heads"], "embedding_size": rows}
    return dataclasses.replace(_LLADA_8B, rope_theta=10000.0, **ids, **(shape | changes))


PRESETS: dict[str, ModelConfig] = {
    "tiny": _small(
        d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, mlp_hidden_size=64,
        vocab_size=128, max_sequence_length=64,
    ),
    # Norms on queries and keys help so short a training off the plateau of the unigrams.
    "quickstart": _small(
        d_model=128, n_heads=4, n_layers=4, mlp_hidden_size=384,
        vocab_size=4096, max_sequence_length=256, attention_layer_norm=True,
    ),
    "llada-100m": dataclasses.replace(
        _LLADA_8B, d_model=448, n_heads=7, n_kv_heads=7, n_layers=6, mlp_hidden_size=768,
        mlp_ratio=2, max_sequence_length=1024, rope_theta=10000.0,
    ),
    "llada-1b": dataclasses.replace(
        _LLADA_8B, d_model=2048, n_heads=32, n_kv_heads=4, n_layers=22, mlp_hidden_size=5634,
    ),
    "llada-8b": _LLADA_8B,
}  # fmt: skip
# Autoregressive controls of the same shapes; that of 100M keeps Qwen2's own vocabulary.
PRESETS |= {
    "qwen2-tiny": twin_of(PRESETS["tiny"]),
    "qwen2-quickstart": twin_of(PRESETS["quickstart"]),
    "qwen2-100m": dataclasses.replace(
        twin_of(PRESETS["llada-100m"]), vocab_size=152064, embedding_size=152064,
        max_sequence_length=2048, eos_token_id=151643, pad_token_id=151643,
    ),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """Returns the model shape of that name; raises `UserError` with the nearest known name."""
    if name not in PRESETS:
        listed = ", ".join(PRESETS)
        raise UserError(f"preset '{name}' is unknown{nearest(name, PRESETS)} (one of {listed})")
    return PRESETS[name]
