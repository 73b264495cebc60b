"""Finds spikes of the loss: steps whose masked tokens cost far more than such tokens did lately.

The loss of a step jumps by itself, since mask rates t are drawn and weigh by 1/t (LLaDA,
arXiv:2502.09992v3, equation 3). So a step is measured against its own draw: the nats of its masked
tokens against those that as many tokens at the same rates have cost lately. One batch of odd data
is no trouble; a run of such steps is a model that has lost something, though all stays finite
(PaLM, arXiv:2204.02311, section 5.1, went back and passed the data by).
"""

import collections
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxllada.common.run.metrics import BINS, StepMetrics

LEARNING = 32
"""Steps before the first judgement."""
KEPT = 0.98
"""What a step weighs after the next one: averages reach about 50 steps back."""
RISE = 0.1
"""Share of the usual cost by which a spike is above it, however steady the run was."""


class SpikeWatch:
    """Looks at every step; saved in every checkpoint, so that a resumed run judges alike.

    `sigma` standard deviations above the usual cost make a spike, and `limit` spikes in a row
    trouble. `fetch` is that of the backend.
    """

    def __init__(
        self,
        sigma: float,
        limit: int,
        fetch: Callable[[list[StepMetrics]], list[StepMetrics]] = list,
        *,
        is_on: bool = True,
    ):
        self.sigma, self.limit, self.is_on, self._fetch = sigma, limit, is_on, fetch
        self._pending: collections.deque[StepMetrics] = collections.deque()
        self.forget()

    def forget(self) -> None:
        """Starts to learn what is usual anew."""
        self._pending.clear()
        self.nll, self.masked = np.zeros(BINS), np.zeros(BINS)
        self.squares = self.weight = 0.0
        self.seen = self.streak = 0
        self.excess = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Takes the metrics of one step, still on the device."""
        if self.is_on:
            self._pending.append(metrics)

    def is_up(self, ahead: int = 0) -> bool:
        """Whether the run is in trouble, judged by all steps but the last `ahead`."""
        while len(self._pending) > ahead:
            self._look(self._fetch([self._pending.popleft()])[0])
        return self.is_on and self.streak >= self.limit

    def _look(self, step: StepMetrics) -> None:
        if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm)):
            return  # the guard counts those
        nll, masked = (
            np.asarray(sums, np.float64) for sums in (step.counts.nll, step.counts.masked)
        )
        known = (masked > 0) & (self.masked > 0)
        if known.any():
            count = masked[known].sum()
            usual = (masked[known] * self.nll[known] / self.masked[known]).sum() / count
            excess = nll[known].sum() / count - usual
            surprise = excess * math.sqrt(count)  # steps with few masked tokens are noisier
            deviation = math.sqrt(self.squares / self.weight) if self.weight else math.inf
            is_clear = surprise > self.sigma * deviation and excess > RISE * usual
            if self.seen >= LEARNING and is_clear:
                self.streak, self.excess = self.streak + 1, float(excess)
                return
            self.squares = KEPT * self.squares + float(surprise) ** 2
            self.weight = KEPT * self.weight + 1
        self.nll = KEPT * self.nll + nll
        self.masked = KEPT * self.masked + masked
        self.seen, self.streak = self.seen + 1, 0

    def message(self) -> str:
        """What there is to say while it is up."""
        usual = float(self.nll.sum() / self.masked.sum())
        return (
            f"the loss was a spike in {self.streak} steps in a row, in the last "
            f"{self.excess:.3g} nats per masked token above the usual {usual:.3g}"
        )

    def state(self) -> dict[str, Any]:
        """As JSON, after all steps added so far."""
        self.is_up()
        names = ("squares", "weight", "seen", "streak", "excess")
        sums = {"nll": self.nll.tolist(), "masked": self.masked.tolist()}
        return sums | {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint; an empty one is that of a new run."""
        self.forget()
        for key, value in state.items():
            setattr(self, key, np.array(value) if isinstance(value, list) else value)
