"""A batch on devices, and what a step counts of it: sums by mask rate and by class of token.

Shape letters: B rows, L positions, T bins of the mask rate, K classes of tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.data.classes import NAMES
from jaxllada.common.run.metrics import BINS
from jaxllada.diffusion.chunked import RowLosses

DeviceBatch = Any
"""A `Batch`, or one micro-batch of it, whose arrays live on devices."""


class ClassCounts(NamedTuple):
    """Sums over masked tokens by class (`common.data.classes`).

    `ended` counts those in whose place the model would put the padding (end) token.
    """

    nll: Float[Array, " K"]
    correct: Float[Array, " K"]
    masked: Float[Array, " K"]
    ended: Float[Array, " K"]


class Counts(NamedTuple):
    """Sums over masked tokens by mask rate: bin b holds rates in [b/10, (b+1)/10).

    `classes` are sums by class of token, for batches that know it.
    """

    nll: Float[Array, " T"]
    correct: Float[Array, " T"]
    masked: Float[Array, " T"]
    classes: ClassCounts | None = None


class StepMetrics(NamedTuple):
    """What a step reports; stays on the device until somebody looks.

    `loss` and `grad_norm` (before clipping) are those of the batch even when the update was
    skipped; `maskable` counts the tokens the loss is about.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    counts: Counts
    maskable: Float[Array, ""]
    skipped: Int[Array, ""]
    skipped_total: Int[Array, ""]


def count_by_rate(
    nll: Float[Array, "B L"],
    correct: Bool[Array, "B L"],
    is_masked: Bool[Array, "B L"],
    mask_rate: Float[Array, " B"],
) -> Counts:
    """Sums losses (nats) and hits of the masked tokens into bins of the mask rate."""
    bins = jnp.clip((mask_rate * BINS).astype(jnp.int32), 0, BINS - 1)
    rows = jax.nn.one_hot(bins, BINS, dtype=jnp.float32)

    def total(values: Array) -> Float[Array, " T"]:
        masked = jnp.where(is_masked, values, 0).astype(jnp.float32)
        return jnp.sum(jnp.sum(masked, axis=1)[:, None] * rows, axis=0)

    return Counts(total(nll), total(correct), total(is_masked))


def count_by_class(
    losses: RowLosses, is_masked: Bool[Array, "B L"], classes: Int[Array, "B L"]
) -> ClassCounts:
    """Sums losses (nats), hits and guessed ends of the masked tokens by their class."""
    kinds = classes[None] == jnp.arange(len(NAMES))[:, None, None]

    def total(values: Array) -> Float[Array, " K"]:
        return jnp.sum(jnp.where(is_masked & kinds, values, 0).astype(jnp.float32), axis=(1, 2))

    return ClassCounts(
        total(losses.nll), total(losses.is_correct), total(is_masked), total(losses.is_watched)
    )


def count_all(losses: RowLosses, batch: DeviceBatch) -> Counts:
    """Counts one micro-batch [B, L] in every way it allows."""
    counts = count_by_rate(losses.nll, losses.is_correct, batch.is_masked, batch.mask_rate)
    if batch.classes is None:
        return counts
    return counts._replace(classes=count_by_class(losses, batch.is_masked, batch.classes))
