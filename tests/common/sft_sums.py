"""Sums of a step as a backend would report them, written by hand."""

from typing import Any

import numpy as np

from jaxllada.common.run.metrics import BINS


class Counted:
    """Sums by class."""

    def __init__(self, nll: Any = (0, 0, 0), correct: Any = (0, 0, 0), masked: Any = (0, 0, 0),
                 ended: Any = (0, 0, 0)):  # fmt: skip
        self.nll, self.correct = np.array(nll, float), np.array(correct, float)
        self.masked, self.ended = np.array(masked, float), np.array(ended, float)


class Counts:
    """Sums by mask rate, all zero, and by class."""

    def __init__(self, classes: Counted | None):
        self.nll = self.correct = self.masked = np.zeros(BINS)
        self.classes = classes


class Step:
    """The metrics of one finite step."""

    loss = grad_norm = 1.0
    maskable = 10.0
    skipped = skipped_total = 0

    def __init__(self, classes: Counted | None):
        self.counts = Counts(classes)
