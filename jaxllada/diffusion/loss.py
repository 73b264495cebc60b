"""Objectives of masked diffusion on full logits: short, exact, and the oracle of `chunked.py`.

LLaDA, arXiv:2502.09992v3, equations 3 (pre-training) and 5 (supervised fine-tuning).
Shape letters: B batch, L positions, V embedding rows.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.errors import UserError

AnyArray = Array | np.ndarray
LossNorm = Literal["token", "sequence", "batch"]


def cross_entropy(
    logits: Float[AnyArray, "*rows V"], targets: Int[AnyArray, "*rows"]
) -> Float[Array, "*rows"]:
    """Returns -log softmax(logits)[target] in nats, in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def masked_diffusion_loss(
    logits: Float[AnyArray, "B L V"],
    targets: Int[AnyArray, "B L"],
    is_masked: Bool[AnyArray, "B L"],
    mask_rate: Float[AnyArray, " B"],
) -> Float[Array, ""]:
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
    weights = is_masked / mask_rate[:, None].astype(jnp.float32)
    return jnp.sum(weights * cross_entropy(logits, targets))


def sft_loss(
    logits: Float[AnyArray, "B L V"],
    targets: Int[AnyArray, "B L"],
    is_masked: Bool[AnyArray, "B L"],
    mask_rate: Float[AnyArray, " B"],
    prompt_lengths: Int[AnyArray, " B"],
) -> Float[Array, ""]:
    """Sums the rows of equation 5: like equation 3, each row over the length of its answer.

    The answer is everything from `prompt_lengths[b]` to the end, end-of-sequence padding
    included; prompt positions never count. A sum over rows: the caller divides by their number.
    """
    length = targets.shape[1]
    is_answer = jnp.arange(length) >= prompt_lengths[:, None]
    weights = (is_masked & is_answer) / mask_rate[:, None].astype(jnp.float32)
    rows = jnp.sum(weights * cross_entropy(logits, targets), axis=1)
    return jnp.sum(rows / (length - prompt_lengths))


def loss_weights(
    is_masked: Bool[AnyArray, "*micro B L"],
    mask_rate: Float[AnyArray, "*micro B"],
    maskable: Bool[AnyArray, "*micro B L"],
    norm: str = "token",
) -> Float[Array, "*micro B L"]:
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
    counted = jnp.sum(maskable, axis=-1).astype(jnp.float32)
    rows = jnp.maximum(jnp.sum(counted > 0), 1).astype(jnp.float32)
    raw = jnp.where(is_masked & maskable, 1 / mask_rate[..., None].astype(jnp.float32), 0)
    if norm == "token":
        return raw / jnp.maximum(jnp.sum(counted), 1)
    if norm == "sequence":
        return raw / jnp.maximum(counted, 1)[..., None] / rows
    return raw / rows
