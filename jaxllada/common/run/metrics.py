"""Metrics between two lines of the log: collected on the device, summed on the host.

Fetching every step would make the host wait for the device. The window keeps the steps' arrays and
fetches them together when a line is due, or a checkpoint: its sums are part of the checkpoint, so a
resumed run logs the same lines as an uninterrupted one.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxllada.common.data.classes import NAMES
from jaxllada.common.run.evaluation import shares

BINS = 10
"""Bins of the mask rate: bin b counts masked tokens of rows with a rate in [b/10, (b+1)/10)."""
StepMetrics = Any
"""A backend's `StepMetrics`: loss, grad_norm, counts (nll, correct, masked, and classes: nll,
correct, masked, ended; or None), maskable, skipped, skipped_total."""
_ARRAYS = ("nll", "correct", "masked", "class_nll", "class_correct", "class_masked", "class_ended")


class Window:
    """Sums of the steps since the last line of the log.

    `fetch` turns the metrics of some steps into ones with numbers or arrays of the host.
    """

    def __init__(self, fetch: Callable[[list[StepMetrics]], list[StepMetrics]] = list) -> None:
        self._fetch = fetch
        self._pending: list[StepMetrics] = []
        self._start()

    def _start(self) -> None:
        self.steps = self.finite = 0
        self.loss = self.grad_norm = self.tokens = 0.0
        self.skipped_total = 0
        self.nll, self.correct, self.masked = (np.zeros(BINS) for _ in range(3))
        self.class_nll, self.class_correct, self.class_masked, self.class_ended = (
            np.zeros(len(NAMES)) for _ in range(4)
        )

    def add(self, metrics: StepMetrics) -> None:
        """Takes the metrics of one step, still on the device."""
        self._pending.append(metrics)

    def settle(self) -> None:
        """Waits for the steps added so far and sums them in float64, in order."""
        for step in self._fetch(self._pending):
            self.steps += 1
            self.tokens += float(step.maskable)
            self.skipped_total = int(step.skipped_total)
            if math.isfinite(step.loss) and math.isfinite(step.grad_norm):
                self.finite += 1
                self.loss += float(step.loss)
                self.grad_norm += float(step.grad_norm)
                self.nll += step.counts.nll
                self.correct += step.counts.correct
                self.masked += step.counts.masked
                if (classes := step.counts.classes) is not None:
                    self.class_nll += classes.nll
                    self.class_correct += classes.correct
                    self.class_masked += classes.masked
                    self.class_ended += classes.ended
        self._pending = []

    def close(self) -> dict[str, Any]:
        """Returns the line of the log (means over the finite steps) and starts anew.

        `loss` is the normalised objective; `masked_nll`, `accuracy` and `nll_by_rate` are plain
        means over masked tokens, without the weight 1/t. Of answers each class of token has its
        own `CLASS_nll` and `CLASS_accuracy` (None where none was masked), and `content_as_eos` is
        the share of masked content in whose place the model would put EOS.
        """
        self.settle()
        masked = max(1.0, float(self.masked.sum()))
        mean = self.finite or math.nan
        line = {
            "loss": self.loss / mean,
            "grad_norm": self.grad_norm / mean,
            "masked_nll": float(self.nll.sum()) / masked,
            "accuracy": float(self.correct.sum()) / masked,
            "nll_by_rate": list(shares(self.nll, self.masked)),
            "skipped_steps": self.skipped_total,
        }
        if self.class_masked.any():
            means = shares(self.class_nll, self.class_masked)
            hits = shares(self.class_correct, self.class_masked)
            for name, nll, accuracy in zip(NAMES, means, hits, strict=True):
                line |= {f"{name}_nll": nll, f"{name}_accuracy": accuracy}
            line["content_as_eos"] = shares(self.class_ended, self.class_masked)[0]
        self._start()
        return line

    def state(self) -> dict[str, Any]:
        """The sums as JSON."""
        self.settle()
        arrays = {key: getattr(self, key).tolist() for key in _ARRAYS}
        names = ("steps", "finite", "loss", "grad_norm", "tokens", "skipped_total")
        return {**arrays, **{key: getattr(self, key) for key in names}}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up the sums of a checkpoint."""
        self._pending = []
        for key, value in state.items():
            setattr(self, key, np.array(value) if isinstance(value, list) else value)
