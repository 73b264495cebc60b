"""What the head says about single tokens: their cross-entropy and that of the most likely ones.

For measuring alone: no gradients, and logits of a chunk of rows at a time. Rows that are not asked
for are sorted behind the others and skipped.

Shape letters: N rows, C rows of a chunk, D model width, V embedding rows.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npu_backend.diffusion.chunked import DEVICE_CHUNK, HOST_CHUNK
from npu_backend.models.head import product


class TokenNats(NamedTuple):
    """One entry a row; 0 and False where nothing was asked."""

    nll: Any
    """[N] float32: -log p of the target, nats."""
    best: Any
    """[N] float32: -log p of the most likely token, nats."""
    is_best: Any
    """[N] bool: whether the target is the most likely token."""


def token_nats(
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    asked: Bool[Tensor, " N"],
    *,
    head_bias: Float[Tensor, " V"] | None = None,
    chunk: int | None = None,
    counted: int | None = None,
) -> TokenNats:
    """Reads softmax(hidden head_weight^T + head_bias) at the targets of the rows asked for.

    Products run in the type of `hidden`, sums and softmax in float32. `counted` is the number of
    rows asked for, where the host knows it.
    """
    counted = int(asked.sum()) if counted is None else counted
    chunk = chunk or (HOST_CHUNK if hidden.device.type == "cpu" else DEVICE_CHUNK)
    nll = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    found = TokenNats(nll, torch.zeros_like(nll), torch.zeros_like(nll, dtype=torch.bool))
    # Float keys, as sorting of other types is slow or missing on NPUs.
    order = (~asked).float().argsort(stable=True)
    for first in range(0, counted, chunk):
        where = order[first : min(first + chunk, counted)]
        logits = product(hidden.index_select(0, where), head_weight.T)
        logits = logits if head_bias is None else logits.add_(head_bias.float())
        top = logits.amax(dim=1)
        chosen = logits.gather(1, targets.index_select(0, where).long()[:, None])[:, 0]
        best = logits.sub_(top[:, None]).exp_().sum(dim=1).log()
        part = (best + top - chosen, best, chosen == top)
        for whole, values in zip(found, part, strict=True):
            whole.index_copy_(0, where, values)
    return found
