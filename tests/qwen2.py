"""A Qwen2ForCausalLM with weights that all matter, for tests of the autoregressive twin."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300, "eos_token_id": 299,
    "bos_token_id": 298, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "initializer_range": 0.02,
}  # fmt: skip


def reference(folder, **changes):
    """A Qwen2ForCausalLM with weights and biases that all matter, saved by its own class."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**{**SHAPE, **changes})
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
        else:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return model


def tokens(rows=2, length=19, seed=0):
    return np.random.default_rng(seed).integers(0, 298, (rows, length))
