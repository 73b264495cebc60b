"""Objectives of masked diffusion on full logits: short, exact, and the oracle of `chunked.py`.

LLaDA, arXiv:2502.09992v3, equations 3 (pre-training) and 5 (supervised fine-tuning).
Shape letters: B batch, L positions, V embedding rows.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.errors import UserError

LossNorm = Literal["token", "sequence", "batch"]


def cross_entropy(
    logits: Float[Tensor, "*rows V"], targets: Int[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """Returns -log softmax(logits)[target] in nats, in float32."""
    logits = logits.float()
    chosen = logits.gather(-1, targets.long()[..., None])[..., 0]
    return logits.logsumexp(dim=-1) - chosen


def masked_diffusion_loss(
    logits: Float[Tensor, "B L V"],
    targets: Int[Tensor, "B L"],
    is_masked: Bool[Tensor, "B L"],
    mask_rate: Float[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Sums the terms of equation 3: cross-entropy of masked tokens, each over its mask rate.

    A sum in nats. The caller divides by the number of all positions of the global batch, masked
    or not, so that the loss does not depend on how the batch is cut; with that division it is an
    upper bound on the negative log-likelihood per token.

    Args:
        logits: predictions for the corrupted sequence, same positions.
        targets: clean tokens.
        is_masked: which positions the corrupted sequence hides.
        mask_rate: p of each sequence, in (0, 1].
    """
    weights = is_masked / mask_rate[:, None].float()
    return (weights * cross_entropy(logits, targets)).sum()


def sft_loss(
    logits: Float[Tensor, "B L V"],
    targets: Int[Tensor, "B L"],
    is_masked: Bool[Tensor, "B L"],
    mask_rate: Float[Tensor, " B"],
    prompt_lengths: Int[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Sums the rows of equation 5: like equation 3, each row over the length of its answer.

    The answer is everything from `prompt_lengths[b]` to the end, end-of-sequence padding
    included; prompt positions never count. A sum over rows: the caller divides by their number.
    """
    length = targets.shape[1]
    is_answer = torch.arange(length, device=targets.device) >= prompt_lengths[:, None]
    weights = (is_masked & is_answer) / mask_rate[:, None].float()
    rows = (weights * cross_entropy(logits, targets)).sum(dim=1)
    return (rows / (length - prompt_lengths)).sum()


def loss_weights(
    is_masked: Bool[Tensor, "*micro B L"],
    mask_rate: Float[Tensor, "*micro B"],
    maskable: Bool[Tensor, "*micro B L"],
    norm: str = "token",
) -> Float[Tensor, "*micro B L"]:
    """Returns w such that sum(w * cross_entropy) is the loss of the whole batch given here.

    Give it the global batch, all micro-batches and devices included: the denominators are then
    the same however the batch is cut.

    Args:
        is_masked: hidden positions.
        mask_rate: p of each sequence.
        maskable: positions that count: all visible ones in pre-training, answers in fine-tuning.
        norm: `token` divides by all maskable positions (equation 3), `sequence` each row by its
            own number and then by the number of rows that have any (equation 5), `batch` by the
            number of such rows only.
    """
    if norm not in get_args(LossNorm):
        listed = ", ".join(get_args(LossNorm))
        raise UserError(f"loss_norm={norm!r} is unknown: use one of {listed}")
    counted = maskable.sum(dim=-1).float()
    rows = (counted > 0).sum().clamp(min=1).float()
    raw = torch.where(is_masked & maskable, 1 / mask_rate[..., None].float(), 0.0)
    if norm == "token":
        return raw / counted.sum().clamp(min=1)
    if norm == "sequence":
        return raw / counted.clamp(min=1)[..., None] / rows
    return raw / rows
