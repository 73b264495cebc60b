"""Prepares the next items of an iterable in a thread while the current one is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


@contextmanager
def ahead(items: Iterable[Item], depth: int = 1) -> Iterator[Iterator[Item]]:
    """Gives an iterator over `items`; beside the one in use, `depth` wait and one is prepared.

    An error of `items` is raised where its item would have been taken. Leaving the block stops the
    thread, which finishes the item it is at.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: Any) -> bool:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
                del item  # or it would be held while the next one is prepared
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    def taken() -> Iterator[Item]:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
            del item

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        closed.set()
        thread.join()
