"""A model of transformers' shape whose logits are dictated, and the sampler as a module."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import torch


def load_generation(folder):
    """Imports the exported sampler from its file, as transformers does."""
    spec = importlib.util.spec_from_file_location("generation", folder / "generation_llada.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TableModel:
    """Logits from a table by position, plus a term per token of the canvas.

    All numbers are multiples of 1/8, so that sums do not depend on their order.
    """

    def __init__(self, seed=0, favourite=None):
        rng = np.random.default_rng(seed)
        self.config = SimpleNamespace(model_type="table", mask_token_id=31, eos_token_id=30)
        self.table = torch.tensor(rng.integers(-16, 16, (256, 32)) / 8, dtype=torch.float32)
        self.table[:, 30] = -64
        if favourite is not None:
            self.table[:, favourite] = 8
        effect = rng.integers(-8, 8, (32, 32)) / 8
        effect[31] = 0
        effect[:, 30] = 0
        self.effect = torch.tensor(effect, dtype=torch.float32)
        self.calls = 0

    def __call__(
        self, input_ids, attention_mask=None, position_ids=None, logits_to_keep=None, **kwargs
    ):
        self.calls += 1
        effect = self.effect[input_ids].sum(1, keepdim=True)
        logits = self.table[: input_ids.shape[1]][None] + effect
        if logits_to_keep is not None:
            logits = logits[:, logits_to_keep]
        return SimpleNamespace(logits=logits.clone())
