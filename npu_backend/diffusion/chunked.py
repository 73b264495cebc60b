"""Cross-entropy over a large vocabulary without ever holding all logits.

The head of a 126,464-token vocabulary is most of a small model's work, and [B, L, V] logits most
of any model's memory. So: rows without weight (unmasked tokens) are sorted behind the others and
skipped; the rest are walked in chunks; and while a chunk's logits exist, the gradients with
respect to its activations and to the head are computed too, so that the backward pass has nothing
left to do. Equal to the oracle in `loss.py` up to the order of float32 sums.

Shape letters: N rows, C rows of a chunk, D model width, V embedding rows.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npu_backend.models.head import product

HOST_CHUNK, DEVICE_CHUNK = 256, 1024
_HEAD_ROWS = 8192


class RowLosses(NamedTuple):
    """What one pass over the rows yields."""

    loss: Any
    """Float32 scalar: sum of weight * cross-entropy, nats; the only differentiable part."""
    nll: Any
    """[N] float32: cross-entropy of each row in nats; 0 where the weight is 0."""
    is_correct: Any
    """[N] bool: whether the most likely token is the target; False where the weight is 0."""
    is_watched: Any
    """[N] bool: whether it is the watched token; False where the weight is 0 or none is given."""


class _Rows(NamedTuple):
    hidden: Tensor  # [N, D]
    targets: Tensor  # [N]
    weights: Tensor  # [N]


class _Gradients(NamedTuple):
    hidden: Tensor  # [N, D]
    head: Tensor | None  # [V, D], None where the head is frozen
    bias: Tensor | None  # [V], None where there is none


def chunked_cross_entropy(
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    weights: Float[Tensor, " N"],
    *,
    head_bias: Float[Tensor, " V"] | None = None,
    chunk: int | None = None,
    watched: int | None = None,
    counted: int | None = None,
) -> RowLosses:
    """Sums weights * cross-entropy of softmax(hidden head_weight^T + head_bias), in float32.

    Products run in the type of `hidden`, sums in float32; the head's gradient is accumulated in
    float32 over all chunks. Work and time follow the number of rows with a weight, not N. The loss
    can be differentiated once.

    Args:
        hidden: activations after the final norm.
        head_weight: one row a token.
        targets: token ids.
        weights: 0 for rows that do not count, any float otherwise; no gradient flows into them.
        head_bias: of models with `include_bias`.
        chunk: rows whose logits exist at one time; memory is 2 * chunk * V floats. By default 256
            on a CPU and 1024 elsewhere, where small products leave the machine idle.
        watched: a token; `is_watched` tells where the model would put it.
        counted: number of weights that are not 0, or more, for callers that know it; else the
            device is asked, and waited for.
    """
    rows = _Rows(hidden, targets.long(), weights.detach().float())
    head_weight = head_weight.to(hidden.dtype)
    if counted is None:
        counted = int((rows.weights != 0).sum())
    chunk = chunk or (HOST_CHUNK if hidden.device.type == "cpu" else DEVICE_CHUNK)
    with torch.profiler.record_function("chunked_cross_entropy"):
        wants_gradients = torch.is_grad_enabled() and hidden.requires_grad
        if not wants_gradients and not (torch.is_grad_enabled() and head_weight.requires_grad):
            return _walk(rows, head_weight, head_bias, chunk, watched, counted, None)
        return RowLosses(*_RowLosses.apply(*rows, head_weight, head_bias, chunk, watched, counted))


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weights: Tensor, head: Tensor,
        bias: Any, chunk: int, watched: int | None, counted: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        wants_head, wants_bias = ctx.needs_input_grad[3], ctx.needs_input_grad[4]
        ctx.gradients = _Gradients(
            torch.zeros_like(hidden),
            torch.zeros_like(head, dtype=torch.float32) if wants_head else None,
            torch.zeros_like(bias, dtype=torch.float32)
            if wants_bias and bias is not None
            else None,
        )
        rows = _Rows(hidden, targets, weights)
        losses = _walk(rows, head, bias, chunk, watched, counted, ctx.gradients)
        # In the types of what they are gradients of; the sums over chunks were float32.
        ctx.gradients = _Gradients(
            ctx.gradients.hidden,
            None if ctx.gradients.head is None else ctx.gradients.head.to(head.dtype),
            None if ctx.gradients.bias is None or bias is None
            else ctx.gradients.bias.to(bias.dtype),
        )  # fmt: skip
        ctx.mark_non_differentiable(losses.nll, losses.is_correct, losses.is_watched)
        return losses

    @staticmethod
    def backward(ctx: Any, loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        if ctx.gradients is None:
            raise RuntimeError("chunked_cross_entropy: its gradients were already used up")
        # In place, as the head's gradient may be the largest tensor there is.
        scaled = [None if g is None else g.mul_(loss.to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None
        return scaled[0], None, None, scaled[1], scaled[2], None, None, None


def _walk(
    rows: _Rows, head: Tensor, bias: Tensor | None, chunk: int, watched: int | None, counted: int,
    gradients: _Gradients | None,
) -> RowLosses:  # fmt: skip
    nll = torch.zeros_like(rows.weights)
    is_correct = torch.zeros_like(nll, dtype=torch.bool)
    is_watched = torch.zeros_like(is_correct)
    # Float keys, as sorting of other types is slow or missing on NPUs.
    order = (rows.weights == 0).float().argsort(stable=True)
    with torch.no_grad(), torch.autocast(nll.device.type, enabled=False):
        for first in range(0, counted, chunk):
            where = order[first : min(first + chunk, counted)]
            part = _Rows(*(x.index_select(0, where) for x in rows))
            found = _chunk(part, where, head, bias, watched, gradients)
            nll.index_copy_(0, where, found[0])
            is_correct.index_copy_(0, where, found[1])
            is_watched.index_copy_(0, where, found[2])
        return RowLosses((nll * rows.weights).sum(), nll, is_correct, is_watched)


def _chunk(
    rows: _Rows, where: Tensor, head: Tensor, bias: Tensor | None, watched: int | None,
    gradients: _Gradients | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    hidden, targets, weights = rows
    logits = product(hidden, head.T)
    logits = logits if bias is None else logits.add_(bias.float())
    top = logits.amax(dim=1)
    chosen = logits.gather(1, targets[:, None])[:, 0]
    is_watched = torch.zeros_like(top, dtype=torch.bool)
    is_watched = is_watched if watched is None else logits[:, watched] == top
    odds = logits.sub_(top[:, None]).exp_()
    total = odds.sum(dim=1)
    counts = weights != 0
    row_nll = torch.where(counts, total.log() + top - chosen, 0.0)
    found = (row_nll, counts & (chosen == top), counts & is_watched)
    if gradients is None:
        return found
    error = odds.mul_((weights / total)[:, None])
    error.scatter_add_(1, targets[:, None], -weights[:, None])
    if gradients.bias is not None:
        gradients.bias.add_(error.sum(dim=0))
    narrow = error.to(hidden.dtype)
    gradients.hidden.index_copy_(0, where, narrow @ head)
    if gradients.head is not None:
        _add_product(gradients.head, narrow, hidden)
    return found


def _add_product(total: Tensor, error: Tensor, hidden: Tensor) -> None:
    """total += error^T hidden; 16-bit products piece by piece, as they need memory first."""
    if hidden.dtype == torch.float32:
        total.addmm_(error.T, hidden)
        return
    for first in range(0, len(total), _HEAD_ROWS):
        rows = slice(first, first + _HEAD_ROWS)
        total[rows].add_(product(error[:, rows].T, hidden))
