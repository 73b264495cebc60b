"""The validation bound under fixed noise (LLaDA, arXiv:2502.09992v3, equation 3), on devices.

Shape letters: B rows.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jaxllada.common.data.batches import Batch
from jaxllada.common.run.evaluation import Evaluation, summarize
from npu_backend.sharding import Mesh, forget_whole, join_rows, local, sum_over
from npu_backend.train.counts import Counts, count_all, on_device, unpacked


class RowSums(NamedTuple):
    """Sums of one batch: the bound's terms (nats) and counted tokens of each row, and counts."""

    nats: Any
    tokens: Any
    counts: Counts


def row_sums(objective: nn.Module, batch: Batch, mesh: Mesh) -> RowSums:
    """Evaluates one [1, B, L] batch: the rows of all processes, on every one of them."""
    piece = on_device(batch, mesh.device).piece(0)
    weights = piece.is_masked / piece.mask_rate[:, None]
    losses = objective(piece, weights, int(batch.is_masked.sum()))
    rows = torch.stack(
        [(weights * losses.nll).sum(dim=1), piece.maskable.sum(dim=1).float()], dim=1
    )
    nats, tokens = join_rows(mesh, rows).cpu().unbind(dim=1)
    counts = count_all(losses, piece)
    packed = torch.cat([*counts[:3], *(counts.classes or ())])
    return RowSums(nats.numpy(), tokens.numpy(), unpacked(sum_over(mesh, packed).cpu().numpy()))


def make_evaluator(
    objective: nn.Module, mesh: Mesh
) -> Callable[[Iterable[Batch], int], Evaluation]:
    """Returns `evaluate(batches, draws)` for the weights that are in `objective`."""

    @torch.no_grad()
    def evaluate(batches: Iterable[Batch], draws: int) -> Evaluation:
        was_training = objective.training
        objective.eval()
        try:
            parts = [row_sums(objective, batch, mesh) for batch in batches]
        finally:
            objective.train(was_training)
        return summarize(parts, draws)

    return evaluate


@contextlib.contextmanager
def holding(
    module: nn.Module, params: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Puts other weights, such as an average, into the parameters of a module for a while."""
    if weights is params:
        yield
        return
    kept = {name: local(param).clone() for name, param in params.items()}
    _put(module, params, weights)
    try:
        yield
    finally:
        _put(module, params, kept)


@torch.no_grad()
def _put(module: nn.Module, params: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    forget_whole(module)
    for name, param in params.items():
        local(param).copy_(local(weights[name]))
