"""One optimiser step: the same for any cut of the global batch.

The weights of the loss are computed with the denominators of the whole global batch before its A
micro-batches are walked, so every micro-batch of every process adds its share of one global sum
and nothing is averaged twice (LLaDA, arXiv:2502.09992v3, equation 3).

Shape letters: A micro-batches, B rows, L positions.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jaxllada.common.data.batches import Batch
from jaxllada.common.noise import uniforms
from npu_backend.diffusion.chunked import RowLosses, chunked_cross_entropy
from npu_backend.diffusion.loss import LossNorm
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.sharding import Mesh, local, sum_over, without_sync
from npu_backend.train.counts import (
    Counts,
    DeviceBatch,
    StepMetrics,
    added,
    count_all,
    on_device,
    unpacked,
)
from npu_backend.train.optim import AdamW, average
from npu_backend.train.state import TrainState


class Objective(nn.Module):
    """The model with its loss, as one module: what is wrapped and split for training.

    Split weights exist only while the `forward` of the module that holds them runs, so everything
    that reads weights has to happen inside.
    """

    def __init__(self, model: MaskPredictor):
        super().__init__()
        self.model = model

    def forward(self, batch: DeviceBatch, weights: Float[Tensor, "B L"], counted: int) -> RowLosses:
        """Returns sum(weights * cross-entropy) in nats and what is known of each token [B, L].

        `batch` is one micro-batch [B, L]. Where the weight is 0 all but the sum mean nothing.
        `is_watched` is where the model would put the padding token, for a batch with classes.
        `counted` is at least the number of positions with a weight; the host knows it from the
        batch it made, so that nothing waits for the device.
        """
        model = self.model
        hidden, bias = model.hidden(batch.noisy, batch.visible), model.head_bias
        if model.config.scale_logits:
            hidden = hidden * model.logit_scale
            bias = None if bias is None else bias * model.logit_scale
        losses = chunked_cross_entropy(
            hidden.flatten(0, 1),
            model.head_weight,
            batch.tokens.flatten(),
            weights.flatten(),
            head_bias=bias,
            watched=None if batch.classes is None else model.config.pad_token_id,
            counted=counted,
        )
        return RowLosses(losses.loss, *(part.view(weights.shape) for part in losses[1:]))


def global_weights(batch: DeviceBatch, mesh: Mesh, norm: LossNorm) -> Float[Tensor, "A B L"]:
    """Returns w such that sum(w * cross_entropy) over all processes is the loss of the batch.

    The same as `loss_weights` of the joined batch: `token` divides by all maskable positions,
    `sequence` each row by its own and then by the rows that have any, `batch` by those rows.
    """
    counted = batch.maskable.sum(dim=-1)
    totals = torch.stack([counted.sum(), (counted > 0).sum()])
    tokens, rows = sum_over(mesh, totals).clamp(min=1).float().unbind()
    hidden = batch.is_masked & batch.maskable
    raw = torch.where(hidden, 1 / batch.mask_rate[..., None].float(), 0.0)
    if norm == "token":
        return raw / tokens
    if norm == "sequence":
        return raw / counted.clamp(min=1).float()[..., None] / rows
    return raw / rows


def loss_and_gradient(
    objective: nn.Module,
    state: TrainState,
    batch: Batch,
    mesh: Mesh,
    *,
    loss_norm: LossNorm,
    dropout_seed: tuple[int, int] | None = None,
) -> tuple[Tensor, Counts, dict[str, Tensor]]:
    """Returns this process's part of the loss, of its counts and of its gradient (float32).

    The gradient is summed over processes where weights are whole, and a slice of that sum where
    they are split. `dropout_seed` is (run seed, number of the batch).
    """
    placed = on_device(batch, mesh.device)
    weights = global_weights(placed, mesh, loss_norm)
    pieces, masked = len(batch.tokens), batch.is_masked.sum(axis=(1, 2))
    rounds = any(param.dtype != torch.float32 for param in state.params.values())
    loss, counts, summed = torch.zeros((), device=mesh.device), None, {}
    for a in range(pieces):
        piece = placed.piece(a)
        if dropout_seed is not None:
            torch.manual_seed(_dropout_seed(*dropout_seed, a * mesh.size + mesh.rank))
        # Sums of bfloat16 gradients are taken here, in float32, so those are fetched every time.
        if a < pieces - 1 and not rounds:
            with without_sync(objective):
                part = _backward(objective, piece, weights[a], int(masked[a]), mesh)
        else:
            part = _backward(objective, piece, weights[a], int(masked[a]), mesh)
        loss = loss + part[0]
        counts = part[1] if counts is None else added(counts, part[1])
        if rounds or a == pieces - 1:
            for name, param in state.params.items():
                grad = torch.zeros_like(param) if param.grad is None else param.grad
                fresh = local(grad).float()
                summed[name] = summed[name] + fresh if name in summed else fresh
                param.grad = None
    assert counts is not None
    return loss, counts, summed


def _backward(
    objective: nn.Module, piece: DeviceBatch, weights: Tensor, counted: int, mesh: Mesh
) -> tuple[Any, Counts]:
    losses = objective(piece, weights, counted)
    (losses.loss * mesh.size).backward()  # the wrappers divide by the number of processes
    return losses.loss.detach(), count_all(losses._replace(nll=losses.nll.detach()), piece)


def _dropout_seed(seed: int, cursor: int, part: int) -> int:
    """A number for the device's generator; a function of the seed and the place in the data."""
    return int(uniforms(seed, _DROPOUT, cursor, part + 1)[part] * 2**53)


_DROPOUT = 1 << 16
"""Stream of `common.noise` that seeds dropout; the streams of training noise lie below."""


def train_step(
    state: TrainState,
    batch: Batch,
    learning_rate: float,
    cursor: int,
    *,
    objective: nn.Module,
    optimizer: AdamW,
    mesh: Mesh,
    loss_norm: LossNorm,
    ema_decay: float,
    dropout_seed: int | None,
) -> StepMetrics:
    """One update from a global batch, or none when its loss or gradient is not finite.

    `cursor` is the number of the batch in the data; dropout is a function of (`dropout_seed`,
    `cursor`) and of how rows are cut over processes. Waits for the device once, before the update.
    """
    loss, counts, grads = loss_and_gradient(
        objective,
        state,
        batch,
        mesh,
        loss_norm=loss_norm,
        dropout_seed=None if dropout_seed is None else (dropout_seed, cursor),
    )
    norms = torch._foreach_norm(list(grads.values()))  # pyright: ignore[reportPrivateImportUsage]
    squares = torch.stack(norms).square().sum()
    # Weights that are not split (any more) have equal gradients on several processes: count one.
    copies = mesh.data if mesh.is_sharded else mesh.size
    counted = squares if mesh.rank // (mesh.size // copies) == 0 else torch.zeros_like(squares)
    maskable = torch.tensor(float(batch.maskable.sum()), device=mesh.device)
    packed = torch.cat(
        [torch.stack([loss, counted, maskable]), *counts[:3], *(counts.classes or ())]
    )
    numbers = sum_over(mesh, packed).cpu().numpy()  # the one wait

    loss, grad_norm = float(numbers[0]), math.sqrt(numbers[1])
    is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if is_finite:
        with torch.no_grad():
            params = {name: local(param) for name, param in state.params.items()}
            mu, nu = ({n: local(x) for n, x in moment.items()} for moment in (state.mu, state.nu))
            optimizer.update(
                params, grads, mu, nu,
                count=state.count, grad_norm=grad_norm, learning_rate=learning_rate,
            )  # fmt: skip
            if state.ema is not None:
                ema = {name: local(tensor) for name, tensor in state.ema.items()}
                average(ema, params, ema_decay, state.step)
    state.step += 1
    state.count += int(is_finite)
    state.skipped = 0 if is_finite else state.skipped + 1
    state.skipped_total += int(not is_finite)
    return StepMetrics(
        loss,
        grad_norm,
        unpacked(numbers[3:]),
        float(numbers[2]),
        state.skipped,
        state.skipped_total,
    )
