"""The autoregressive twin: Qwen2's config.json as a `ModelConfig`, and back unchanged.

Qwen2 (arXiv:2407.10671v4, section 2.2) is the stack LLaDA was made of: RMS norms, gated SiLU,
rotary positions, grouped-query attention; with biases on queries, keys and values, and a causal
mask. It is the control of a masked-diffusion model: same data, same loop, next-token loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxllada.common.config.llama_fields import activation, integer, number, rope_theta
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError

KEPT = "qwen2_config"
"""Key of `extra` that holds the config.json a model was read from."""

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
    "eos_token_id",
)
# Field -> the values that can be run.
_SUPPORTED = {
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
    "is_causal": (True, None),
    "mask_token_id": (None,),
}


@dataclass(frozen=True, kw_only=True)
class CausalConfig(ModelConfig):
    """A `ModelConfig` whose positions see only those before them and predict the next token.

    It has no mask token; its config.json is that of `Qwen2ForCausalLM`.
    """

    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_token_id is not None:
            raise UserError(
                f"mask_token_id={self.mask_token_id}: an autoregressive model has no mask token"
            )

    @property
    def is_causal(self) -> bool:
        return True

    @property
    def mask_id(self) -> int:
        raise UserError(
            "model_type='qwen2' is autoregressive and has no mask token: this needs a diffusion "
            "model"
        )

    @property
    def start_id(self) -> int:
        """The token a text begins behind: `bos_token_id` where config.json has one, or EOS."""
        return integer(self.extra.get(KEPT, {}), "bos_token_id", self.eos_token_id)

    def to_dict(self) -> dict[str, Any]:
        return to_qwen2(self)


def from_qwen2(values: Mapping[str, Any]) -> CausalConfig:
    """Reads the config.json of `Qwen2ForCausalLM`.

    Raises:
        UserError: fields this project cannot run (sliding windows, scaled or sectioned rotary
            positions, heads of another width), missing or mistyped ones.
    """
    return CausalConfig(**_fields(values), extra={KEPT: dict(values)})


def to_qwen2(config: ModelConfig) -> dict[str, Any]:
    """Returns the config.json for `Qwen2ForCausalLM`: the one that was read, with what changed.

    Raises:
        UserError: `config` is not that of an autoregressive model.
    """
    if not isinstance(config, CausalConfig):
        raise UserError("layout=qwen2 is for autoregressive models: use layout=llada or llama")
    plain, kept = _plain(config), config.extra.get(KEPT)
    if kept is None:
        return plain
    before = _plain(CausalConfig(**_fields(kept)))
    result = dict(kept)
    for key, value in plain.items():
        if value == before[key]:
            continue
        if key == "rope_theta" and isinstance(kept.get("rope_parameters"), Mapping):
            result["rope_parameters"] = {**kept["rope_parameters"], key: value}
        else:
            result[key] = value
    return result


def twin_of(config: ModelConfig) -> CausalConfig:
    """Returns the autoregressive model of the same shape, vocabulary and end token.

    Qwen2 has its biases and no norms on queries and keys, so the counts of parameters differ by
    what those take.
    """
    return CausalConfig(
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_kv_heads=config.kv_heads,
        n_layers=config.n_layers,
        mlp_hidden_size=config.ffn_width,
        rope_theta=config.rope_theta,
        max_sequence_length=config.max_sequence_length,
        vocab_size=config.vocab_size,
        embedding_size=config.rows,
        weight_tying=config.weight_tying,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        rms_norm_eps=1e-6,
        **_ALWAYS,
    )


_ALWAYS: dict[str, Any] = {
    "activation_type": "silu",
    "block_type": "llama",
    "rope": True,
    # Qwen2's class rounds cosines and sines to the activation type.
    "rope_full_precision": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "layer_norm_type": "rms",
    "bias_for_layer_norm": False,
    "include_qkv_bias": True,
}


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [key for key in _REQUIRED if values.get(key) is None]:
        raise UserError(f"{', '.join(missing)} missing: model_type='qwen2' needs them")
    for key, allowed in _SUPPORTED.items():
        if values.get(key) not in allowed:
            raise UserError(f"{key}={values[key]!r} is not supported for model_type='qwen2'")
    kinds = values.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise UserError(f"layer_types={kinds!r} is not supported: use full_attention")
    width, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    if (head_dim := values.get("head_dim")) is not None and head_dim * heads != width:
        raise UserError(
            f"head_dim={head_dim} is not supported: hidden_size={width} and "
            f"num_attention_heads={heads} have to give heads of that width"
        )
    rows, eos = integer(values, "vocab_size"), integer(values, "eos_token_id")
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"tie_word_embeddings={tied!r}: expected true or false")
    return _ALWAYS | {
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": integer(values, "num_key_value_heads", heads),
        "n_layers": integer(values, "num_hidden_layers"),
        "mlp_hidden_size": integer(values, "intermediate_size"),
        "activation_type": activation(values),
        "rope_theta": rope_theta(values),
        "attention_dropout": number(values, "attention_dropout", 0.0),
        "max_sequence_length": integer(values, "max_position_embeddings", 32768),
        "rms_norm_eps": number(values, "rms_norm_eps", 1e-6),
        "vocab_size": rows,
        "embedding_size": rows,
        "weight_tying": tied,
        "eos_token_id": eos,
        "pad_token_id": integer(values, "pad_token_id", eos),
        "init_std": number(values, "initializer_range", 0.02),
    }


def _plain(config: CausalConfig) -> dict[str, Any]:
    c = config
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": c.d_model,
        "intermediate_size": c.ffn_width,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.kv_heads,
        "hidden_act": c.activation_type,
        "max_position_embeddings": c.max_sequence_length,
        "max_window_layers": c.n_layers,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "use_sliding_window": False,
        "vocab_size": c.rows,
        "tie_word_embeddings": c.weight_tying,
        "attention_dropout": c.attention_dropout,
        "initializer_range": c.init_std,
        "bos_token_id": c.start_id,
        "eos_token_id": c.eos_token_id,
        "pad_token_id": c.pad_token_id,
    }
