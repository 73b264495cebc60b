"""A torch model whose logits are dictated by the tables of `tests/plain_loop.py`."""

from types import SimpleNamespace

import torch
from torch import nn

from tests.npu.devices import DEVICE
from tests.plain_loop import TABLE_CONFIG, tables


class TableModel(nn.Module):
    """Logits from a table by position, plus a term per visible token of the canvas."""

    config = TABLE_CONFIG
    compute = SimpleNamespace(dtype="float32")
    head_bias, logit_scale = None, 1.0

    def __init__(self, seed=0, favourite=None):
        super().__init__()
        table, effect = (torch.from_numpy(x).to(DEVICE) for x in tables(seed, favourite))
        self.table, self.effect = nn.Parameter(table), nn.Parameter(effect)
        self.head_weight = torch.eye(len(effect), device=DEVICE)

    @property
    def device(self):
        return self.table.device

    def rotation(self, position_ids):
        return position_ids

    def hidden(self, tokens, attention_mask=None, *, turn=None, window=None):
        if turn is None:
            turn = torch.arange(tokens.shape[1], device=tokens.device)[None]
        effect = self.effect[tokens]
        if attention_mask is not None:
            effect = effect * (attention_mask != 0)[..., None]
        rows = self.table[turn] + effect.sum(dim=1, keepdim=True)
        return rows if window is None else rows.narrow(1, *window)

    def head(self, hidden):
        return hidden.clone()

    def forward(self, tokens, attention_mask=None):
        return self.hidden(tokens, attention_mask)


def logits_of(model):
    """The model as the slow loop calls it, with NumPy arrays."""

    @torch.no_grad()
    def call(canvas, visible):
        tokens = torch.from_numpy(canvas).long().to(model.device)
        return model(tokens, torch.from_numpy(visible).to(model.device)).float().cpu().numpy()

    return call
