"""Prepares the next items of an iterable in a thread while the current one is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


class _Ended:
    """Stands for the item that does not come, and why: `error` is None at the end."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


class Ahead(Iterator[Item]):
    """An iterator over `items`; beside the one in use, `depth` wait and one is prepared.

    An error of `items` is raised where its item would have been taken. `close`, or leaving the
    `with` block, stops the thread, which finishes the item it is at; nothing comes after that.
    """

    def __init__(self, items: Iterable[Item], depth: int = 1):
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def _work(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
                del item  # or it would be held while the next one is prepared
            self._put(_Ended())
        except BaseException as error:
            self._put(_Ended(error))

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Item:
        if self._closed.is_set():
            raise StopIteration
        item = self._waiting.get()
        if isinstance(item, _Ended):
            self.close()
            raise StopIteration if item.error is None else item.error
        return item

    def close(self) -> None:
        """Stops the thread and waits for the item it is preparing."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> "Ahead[Item]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
