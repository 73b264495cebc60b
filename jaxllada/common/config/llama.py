"""Between `ModelConfig` and the config.json of Hugging Face's Llama classes.

Such files describe iLLaDA (arXiv:2606.25331), the language part of LLaDA-V (arXiv:2505.16933) and
LLaDA models exported for `LlamaForCausalLM`. Those classes round cosines and sines to the
activation type before they rotate. Both directions keep what they cannot say: a `llama` file
carries the released fields under `llada_config`, a `llada` file the Llama fields under
`llama_config`, but only where they could not be computed from the rest.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxllada.common.config.family import (
    ILLADA,
    LLADA_KEY,
    LLADA_V,
    LLAMA_KEY,
    family_of,
)
from jaxllada.common.config.llama_fields import ACTIVATIONS, activation, integer, number, rope_theta
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError

VISION = ("vision_tower.", "mm_projector.", "image_newline")
"""Parts of LLaDA-V's tensor names that are not its language model."""

_EPS = 1e-5  # of LayerNorm, the only one the released class has
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


def from_llama(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the config.json of a Llama-like mask predictor.

    Raises:
        UserError: fields this project cannot run (scaled rotary positions, heads of another width,
            biases on some layers only, ...), missing or mistyped ones.
    """
    rest = {key: value for key, value in values.items() if key != LLADA_KEY}
    fields = _fields(rest)
    if kept := values.get(LLADA_KEY):
        if not isinstance(kept, Mapping):
            raise UserError(f"{LLADA_KEY} holds a {type(kept).__name__}, expected an object")
        config = ModelConfig.from_dict(kept)
        before = _fields(_plain(config))
        # Whoever edited the file edited the Llama fields.
        changes = {key: value for key, value in fields.items() if value != before[key]}
        config = dataclasses.replace(config, **changes)
    else:
        config = ModelConfig(**fields)
    if config.mask_token_id is not None and config.mask_token_id == config.pad_token_id:
        raise UserError(f"mask_token_id and pad_token_id are both {config.pad_token_id}")
    if rest == _plain(config):
        return config
    return dataclasses.replace(config, extra={**config.extra, LLAMA_KEY: rest})


def to_llama(config: ModelConfig) -> dict[str, Any]:
    """Returns the config.json for `LlamaForCausalLM`, or for the class the model came from.

    Raises:
        UserError: naming every field that those classes cannot express.
    """
    _check(config)
    plain, kept = _plain(config), config.extra.get(LLAMA_KEY)
    result = plain if kept is None else _updated(kept, plain)
    rebuilt = from_llama(result)
    if (
        rebuilt.mask_token_id is None
    ):  # iLLaDA: its tokenizer knows the id, its config.json does not
        rebuilt = dataclasses.replace(rebuilt, mask_token_id=config.mask_token_id)
    released, as_rebuilt = (
        {key: value for key, value in c.to_dict().items() if key != LLAMA_KEY}
        for c in (config, rebuilt)
    )
    return result if as_rebuilt == released else {**result, LLADA_KEY: released}


def stores_tied_head(config: ModelConfig) -> bool:
    """Whether the model came from a family whose files hold a tied head a second time."""
    kept = config.extra.get(LLAMA_KEY)
    return kept is not None and family_of(kept) is ILLADA


def _updated(kept: Mapping[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """The file a model came from, with what changed since."""
    before = _plain(ModelConfig(**_fields(kept)))
    result = dict(kept)
    for key, value in plain.items():
        if value == before[key] or (key == "mask_token_id" and before[key] is None):
            continue
        if key == "rope_theta" and isinstance(kept.get("rope_parameters"), Mapping):
            result["rope_parameters"] = {**kept["rope_parameters"], key: value}
        else:
            result[key] = value
    if family_of(kept) is LLADA_V:  # without its image part it is a Llama
        result.pop("auto_map", None)
        for key in ("model_type", "architectures", "is_causal"):
            result[key] = plain[key]
    return result


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` that a Llama config.json determines; defaults are `LlamaConfig`'s."""
    family = family_of(values)
    if missing := [key for key in _REQUIRED if values.get(key) is None]:
        raise UserError(f"{', '.join(missing)} missing: a {family.name} model needs them")
    width, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    if (head_dim := values.get("head_dim")) is not None and head_dim * heads != width:
        raise UserError(
            f"head_dim={head_dim} is not supported: hidden_size={width} and "
            f"num_attention_heads={heads} have to give heads of that width"
        )
    rows = integer(values, "vocab_size")
    eos = integer(values, "eos_token_id", 2)
    tied = values.get("tie_word_embeddings", False if family is not ILLADA else None)
    if not isinstance(tied, bool):
        raise UserError(f"tie_word_embeddings={tied!r}: expected true or false")
    return {
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": integer(values, "num_key_value_heads", heads),
        "n_layers": integer(values, "num_hidden_layers"),
        "mlp_hidden_size": integer(values, "intermediate_size"),
        "activation_type": activation(values),
        "block_type": "llama",
        "rope": True,
        "rope_full_precision": False,
        "rope_theta": rope_theta(values),
        "attention_dropout": number(values, "attention_dropout", 0.0),
        "residual_dropout": number(values, "resid_pdrop", 0.0),
        "embedding_dropout": 0.0,
        "max_sequence_length": integer(values, "max_position_embeddings", 2048),
        "rms_norm_eps": number(values, "rms_norm_eps", 1e-6),
        "vocab_size": rows,
        "embedding_size": rows,
        "weight_tying": tied,
        "eos_token_id": eos,
        "pad_token_id": integer(values, "pad_token_id", eos),
        "mask_token_id": integer(values, "mask_token_id", None),
        "init_std": number(values, "initializer_range", 0.02),
        **_norms(values),
        **_biases(values, tied),
    }


def _norms(values: Mapping[str, Any]) -> dict[str, Any]:
    eps = values.get("layer_norm_eps") if family_of(values) is ILLADA else None
    if eps is None:
        return {"layer_norm_type": "rms", "bias_for_layer_norm": False}
    if eps != _EPS:
        raise UserError(f"layer_norm_eps={eps} is not supported: use null (RMSNorm) or {_EPS}")
    return {"layer_norm_type": "default", "bias_for_layer_norm": True}


def _biases(values: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    both = {key: bool(values.get(key)) for key in ("attention_bias", "mlp_bias")}
    if len(set(both.values())) > 1 or (both["mlp_bias"] and not tied):
        told = ", ".join(f"{key}={value}" for key, value in both.items())
        raise UserError(
            f"{told} with tie_word_embeddings={tied} is not supported: "
            "both false, or both true with a tied head"
        )
    return {"include_bias": both["mlp_bias"], "include_qkv_bias": False}


def _plain(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model that has never been anything but a Llama."""
    c = config
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "is_causal": False,
        "hidden_size": c.d_model,
        "intermediate_size": c.ffn_width,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": c.activation_type,
        "max_position_embeddings": c.max_sequence_length,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "vocab_size": c.rows,
        "tie_word_embeddings": c.weight_tying,
        "attention_bias": c.include_bias,
        "mlp_bias": c.include_bias,
        "attention_dropout": c.attention_dropout,
        "initializer_range": c.init_std,
        "bos_token_id": c.extra.get("bos_token_id"),
        "eos_token_id": c.eos_token_id,
        "pad_token_id": c.pad_token_id,
        "mask_token_id": c.mask_token_id,
        "use_cache": False,
    }


def _check(config: ModelConfig) -> None:
    c, kept = config, config.extra.get(LLAMA_KEY, {})
    # iLLaDA's own class takes LayerNorm.
    own_norm = c.layer_norm_type == "default" and kept.get("layer_norm_eps") is not None
    wrong = {
        "block_type": c.block_type != "llama",
        "activation_type": c.activation_type not in ACTIVATIONS.values(),
        "attention_layer_norm": c.attention_layer_norm,
        "layer_norm_type": c.layer_norm_type != "rms" and not own_norm,
        "layer_norm_with_affine": not c.layer_norm_with_affine,
        "bias_for_layer_norm": c.norm_bias and c.layer_norm_with_affine and not own_norm,
        "include_bias": c.include_bias and not c.weight_tying,
        "include_qkv_bias": c.include_qkv_bias and not c.include_bias,
        "scale_logits": c.scale_logits,
        "input_emb_norm": c.input_emb_norm,
    }
    if found := [f"{key}={getattr(c, key)!r}" for key, is_wrong in wrong.items() if is_wrong]:
        raise UserError(
            f"layout=llama cannot express {', '.join(found)}: Llama has RMSNorm, separate gates, "
            "no scaling and no such biases; use layout=llada"
        )
