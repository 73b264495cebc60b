"""Which family of models a config.json belongs to, told from the file alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.common.errors import UserError

LLADA_KEY, LLAMA_KEY = "llada_config", "llama_config"
"""Where one layout's config.json keeps what only the other one's can say."""

# model_type -> what it is, of families that have a config.json but no support here.
_OTHERS = {
    "llada2_moe": "LLaDA2, a mixture of experts",
    "llada2_moe_veomni": "LLaDA2, a mixture of experts",
    "llada_moe": "LLaDA-MoE, a mixture of experts",
    "dream": "Dream, which predicts shifted by one position",
    "mistral": "an autoregressive model",
    "gemma": "an autoregressive model",
    "qwen3": "an autoregressive model",
}


class Family(NamedTuple):
    """A supported family: its name, the layout of its folders, and what its rules depend on."""

    name: str
    layout: str


LLADA = Family("llada", "llada")
LLAMA = Family("llama", "llama")
ILLADA = Family("illada", "llama")
LLADA_V = Family("llava_llada", "llama")
QWEN2 = Family("qwen2", "qwen2")
"""The one autoregressive family: the control of a masked-diffusion model."""


def family_of(values: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Raises:
        UserError: another family, by name, or an autoregressive Llama.
    """
    kind = str(values.get("model_type", "llada"))
    listed = values.get("architectures")
    architectures = listed if isinstance(listed, list) else []
    if kind == "illada" or "ILLaDAForCausalLM" in architectures:
        return ILLADA
    if "num_experts" in values or "LLaDAMoEModelLM" in architectures:
        raise _unsupported(kind, _OTHERS["llada_moe"])
    if kind == "llada" and "d_model" in values:
        return LLADA
    if kind == "llava_llada" or (kind == "llada" and "hidden_size" in values):
        return LLADA_V
    if kind == "llama":
        if values.get("is_causal") is False or values.get("mask_token_id") is not None:
            return LLAMA
        raise UserError(
            "model_type='llama' without is_causal=false or a mask_token_id is an autoregressive "
            "model, not a mask predictor"
        )
    if kind == "qwen2":
        return QWEN2
    if kind.lower() in _OTHERS:
        raise _unsupported(kind, _OTHERS[kind.lower()])
    if kind.startswith("a2d-"):
        raise _unsupported(kind, "an adapted autoregressive model")
    raise UserError(
        f"model_type={kind!r} with these fields is not a dense LLaDA model; expected model_type "
        "'llada' with d_model, n_heads, n_layers, ..., or 'llama' with is_causal false"
    )


def read_config_json(file: Path) -> dict[str, Any]:
    """Returns the object in a config.json; UserError where there is none."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; a model folder has a config.json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}, expected an object")
    return values


def _unsupported(kind: str, what: str) -> UserError:
    return UserError(
        f"model_type={kind!r} is not supported ({what}); expected a dense model: llada, "
        "illada, llava_llada, or llama with is_causal false; or qwen2, the autoregressive twin"
    )
