"""Stopping on request: a signal is noted, the current step is finished, the state is saved."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class StopSignal:
    """Notes SIGTERM and Ctrl-C while its `with` block runs; a second Ctrl-C interrupts at once.

    `number` is the signal that came, or 0. In a thread other than the main one nothing is noted.
    `agree` returns the largest of the numbers that the processes of a run give it.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self.number = 0
        self._agree = agree
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
        return self._agree(self.number)
