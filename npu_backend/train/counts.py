"""A batch on the device, and what a step counts of it: sums by mask rate and by class of token.

Shape letters: B rows, L positions, T bins of the mask rate, K classes of tokens.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.data.batches import Batch
from jaxllada.common.data.classes import NAMES
from jaxllada.common.run.metrics import BINS
from npu_backend.diffusion.chunked import RowLosses


class DeviceBatch(NamedTuple):
    """A `Batch`, or one micro-batch of it, whose arrays are tensors of the device."""

    tokens: Any
    noisy: Any
    is_masked: Any
    mask_rate: Any
    maskable: Any
    visible: Any
    classes: Any = None

    def piece(self, a: int) -> "DeviceBatch":
        """Micro-batch `a`."""
        return DeviceBatch(*(None if leaf is None else leaf[a] for leaf in self))


def on_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copies a batch to the device."""
    arrays = (None if array is None else torch.from_numpy(array) for array in batch)
    return DeviceBatch(
        *(None if array is None else array.to(device, non_blocking=True) for array in arrays)
    )


class ClassCounts(NamedTuple):
    """Sums over masked tokens by class (`common.data.classes`).

    `ended` counts those in whose place the model would put the padding (end) token.
    """

    nll: Any
    correct: Any
    masked: Any
    ended: Any


class Counts(NamedTuple):
    """Sums over masked tokens by mask rate: bin b holds rates in [b/10, (b+1)/10).

    `classes` are sums by class of token, for batches that know it.
    """

    nll: Any
    correct: Any
    masked: Any
    classes: ClassCounts | None = None


class StepMetrics(NamedTuple):
    """What a step reports, on the host.

    `loss` and `grad_norm` (before clipping) are those of the batch even when the update was
    skipped; `maskable` counts the tokens the loss is about.
    """

    loss: float
    grad_norm: float
    counts: Counts
    maskable: float
    skipped: int
    skipped_total: int


def count_by_rate(
    nll: Float[Tensor, "B L"],
    correct: Bool[Tensor, "B L"],
    is_masked: Bool[Tensor, "B L"],
    mask_rate: Float[Tensor, " B"],
) -> Counts:
    """Sums losses (nats) and hits of the masked tokens into bins of the mask rate."""
    bins = torch.clamp((mask_rate * BINS).to(torch.int32), 0, BINS - 1)
    rows = (bins[:, None] == torch.arange(BINS, device=bins.device)).float()

    def total(values: Tensor) -> Float[Tensor, " T"]:
        masked = torch.where(is_masked, values, 0).float()
        return (masked.sum(dim=1)[:, None] * rows).sum(dim=0)

    return Counts(total(nll), total(correct), total(is_masked))


def count_by_class(
    losses: RowLosses, is_masked: Bool[Tensor, "B L"], classes: Int[Tensor, "B L"]
) -> ClassCounts:
    """Sums losses (nats), hits and guessed ends of the masked tokens by their class."""
    numbers = torch.arange(len(NAMES), device=classes.device, dtype=torch.int32)
    kinds = classes.to(torch.int32)[None] == numbers[:, None, None]

    def total(values: Tensor) -> Float[Tensor, " K"]:
        return torch.where(is_masked & kinds, values.float(), 0.0).sum(dim=(1, 2))

    return ClassCounts(
        total(losses.nll), total(losses.is_correct), total(is_masked), total(losses.is_watched)
    )


def count_all(losses: RowLosses, batch: DeviceBatch) -> Counts:
    """Counts one micro-batch [B, L] in every way it allows."""
    counts = count_by_rate(losses.nll, losses.is_correct, batch.is_masked, batch.mask_rate)
    if batch.classes is None:
        return counts
    return counts._replace(classes=count_by_class(losses, batch.is_masked, batch.classes))


def added(counts: Counts, others: Counts) -> Counts:
    """Counts of two micro-batches together."""
    classes = None
    if counts.classes is not None and others.classes is not None:
        classes = ClassCounts(*map(torch.add, counts.classes, others.classes))
    nll, correct, masked = map(torch.add, counts[:3], others[:3])
    return Counts(nll, correct, masked, classes)


def unpacked(numbers: np.ndarray) -> Counts:
    """Counts from their arrays one behind the other."""
    classes = None
    if len(numbers) > 3 * BINS:
        classes = ClassCounts(*np.split(numbers[3 * BINS :], len(ClassCounts._fields)))
    nll, correct, masked = np.split(numbers[: 3 * BINS], 3)
    return Counts(nll, correct, masked, classes)
