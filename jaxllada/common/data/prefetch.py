"""Builds the next batches in a thread while the current step runs."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from jaxllada.common.data.cutting import Batch


class Source(Protocol):
    """Anything with the batch of a step."""

    def batch(self, step: int) -> Batch: ...


class Prefetch(Iterator[tuple[int, Batch]]):
    """Iterator of (step, batch) from `start_step` on, at most `depth` batches ahead.

    An error of the source is raised where its batch would have been taken. `close` (or leaving the
    `with` block) stops the thread; batches are functions of their step, so nothing is lost.
    """

    def __init__(self, source: Source, start_step: int, depth: int, stop_step: int | None):
        self._source, self._steps = source, (start_step, stop_step)
        self._queue: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        step, stop = self._steps
        while not self._closed.is_set() and (stop is None or step < stop):
            try:
                item = self._source.batch(step)
            except BaseException as error:
                self._put(step, error)
                return
            self._put(step, item)
            step += 1
        self._put(step, StopIteration())

    def _put(self, step: int, item: Any) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put((step, item), timeout=0.1)
            except queue.Full:
                continue

    def __next__(self) -> tuple[int, Batch]:
        if self._closed.is_set():
            raise StopIteration
        step, item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return step, item

    def close(self) -> None:
        """Stops the thread and waits for the batch it is building."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(
    source: Source, start_step: int = 0, depth: int = 2, stop_step: int | None = None
) -> Prefetch:
    """Starts reading ahead; `stop_step` (exclusive) ends the iteration."""
    return Prefetch(source, start_step, depth, stop_step)
