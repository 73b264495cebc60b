"""Random models of random shapes as folders, written with the safetensors library alone."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.weights.layouts import LAYOUTS

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

# What iLLaDA's config.json holds (arXiv:2606.25331), made small.
ILLADA = {
    "architectures": ["ILLaDAForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM"},
    "model_type": "illada",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": None,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "resid_pdrop": 0.0,
    "tie_word_embeddings": True,
    "vocab_size": 40,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "transformers_version": "4.57.1",
}


@st.composite
def configs(draw, *, for_llama=False):
    """Configurations of every shape that a layout can hold."""
    head_dim, n_heads = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 2, 4]))
    groups = draw(st.sampled_from([1, 2])) if n_heads > 1 else 1
    n_layers = draw(st.integers(1, 3))
    vocab_size = draw(st.integers(4, 12))
    tied = draw(st.booleans())
    fields = {
        "model_type": "llada",
        "d_model": head_dim * n_heads,
        "n_heads": n_heads,
        "n_kv_heads": n_heads // groups,
        "n_layers": n_layers,
        "mlp_hidden_size": draw(st.sampled_from([6, 8])),
        "activation_type": draw(st.sampled_from(["silu", "relu", "gelu"])),
        "block_type": "llama",
        "block_group_size": draw(st.sampled_from([n for n in (1, 2, 3) if n_layers % n == 0])),
        "rope": True,
        "rope_theta": draw(st.sampled_from([10000.0, 500000.0])),
        "rope_full_precision": draw(st.booleans()),
        "layer_norm_type": "rms",
        "bias_for_layer_norm": False,
        "residual_dropout": draw(st.sampled_from([0.0, 0.1])),
        "vocab_size": vocab_size,
        "embedding_size": draw(st.sampled_from([None, vocab_size, vocab_size + 3])),
        "weight_tying": tied,
        "include_bias": tied and draw(st.booleans()),
        "eos_token_id": 0,
        "pad_token_id": 0,
        "mask_token_id": draw(st.sampled_from([None, 3])),
        "use_cache": False,
        "unknown": draw(st.sampled_from([None, [1, {"a": 2}], "x"])),
    }
    if not for_llama:
        fields |= {
            "block_type": draw(st.sampled_from(["llama", "sequential"])),
            "include_bias": draw(st.booleans()),
            "include_qkv_bias": draw(st.booleans()),
            "attention_layer_norm": draw(st.booleans()),
            "attention_layer_norm_with_affine": draw(st.booleans()),
            "layer_norm_type": draw(st.sampled_from(["rms", "default", "gemma_rms"])),
            "layer_norm_with_affine": draw(st.booleans()),
            "bias_for_layer_norm": draw(st.sampled_from([None, True, False])),
            "scale_logits": draw(st.booleans()),
        }
        if fields["block_type"] == "sequential" and draw(st.booleans()):
            fields["activation_type"] = "swiglu"
    return ModelConfig.from_dict(fields)


def write_model(folder, config_json, layout, dtype="float32", shards=1, seed=0, finite=False):
    """Writes a model folder of random weights and returns them by stored name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = LAYOUTS[layout].read_config(config_json)
    rng = np.random.default_rng(seed)
    kind = np.dtype(DTYPES[dtype])
    weights = {}
    for tensor in LAYOUTS[layout].tensors(config):
        count = int(np.prod(tensor.shape))
        if finite:
            array = (rng.standard_normal(count) / 4).astype(kind)
        else:
            # Any bits: also infinities, denormals and every kind of NaN.
            array = np.frombuffer(rng.bytes(count * kind.itemsize), kind)
        weights[tensor.name] = array.reshape(tensor.shape)
    head = LAYOUTS[layout].head
    if config.weight_tying and head in weights:
        weights[head] = weights[LAYOUTS[layout].embedding].copy()
    write_shards(folder, weights, shards)
    (folder / "config.json").write_text(json.dumps(config_json))
    return weights


def write_shards(folder, weights, shards=1):
    """Deals tensors out to files, which then hold layers in no order at all."""
    for old in folder.glob("model*safetensors*"):
        old.unlink()
    names = list(weights)
    groups = [names[i::shards] for i in range(min(shards, len(names)))]
    if len(groups) == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    table = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: weights[name] for name in group}, folder / file)
        table |= dict.fromkeys(group, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def read_weights(folder):
    """All stored tensors, by the safetensors library."""
    return {
        name: array
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def assert_same_bits(before, after):
    """The same names, types, shapes and bytes."""
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype, name
        assert array.shape == after[name].shape, name
        assert array.tobytes() == after[name].tobytes(), name
