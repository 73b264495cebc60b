"""Stopping on request: a signal is noted, the current step is finished, the state is saved."""

import signal
import threading
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignal:
    """Notes SIGTERM and Ctrl-C while its `with` block runs; a second Ctrl-C interrupts at once.

    `number` is the signal that came, or 0. In a thread other than the main one nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def agreed(self) -> int:
        """The signal any process has noted; all processes must ask at the same step."""
        if jax.process_count() > 1:
            noted = multihost_utils.process_allgather(np.int32(self.number))
            return int(np.max(noted))
        return self.number
