"""Files that get their names only when they are on the disk, synced while the next are written."""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

# One call of write(2) takes at most 2 GiB; small calls also move a progress bar.
_CALL = 16 << 20
# Bytes after which a file is synced without waiting for its end, and how many such orders may be
# open: together they bound what a slow disk still has to take when the last byte is written.
_SYNC = 128 << 20
_PENDING = 3


def array_bytes(array: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array, of any dtype, as bytes; nothing is copied."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8).data


class DurableFiles:
    """Writes files one after another; a thread syncs them and then gives them their names.

    A name thus means: complete and on the disk. Leaving the block waits for all of them and raises
    the first OSError. `told` is called with the number of bytes of every write.
    """

    def __init__(self, told: Callable[[int], None] = lambda _: None):
        self._told = told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._orders: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> "DurableFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._orders:
                self._orders.popleft().result()
        finally:
            self._thread.shutdown()

    @contextlib.contextmanager
    def create(self, path: Path) -> Iterator[Callable[[memoryview | bytes], None]]:
        """Yields a function that appends bytes to what will be `path`."""
        temporary = path.with_name(f".{path.name}.part")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        unsynced = 0

        def append(data: memoryview | bytes) -> None:
            nonlocal unsynced
            data = memoryview(data)
            while data:
                count = os.write(handle, data[:_CALL])
                data = data[count:]
                unsynced += count
                self._told(count)
                if unsynced >= _SYNC:
                    self._order(lambda: self._sync(handle))
                    unsynced = 0

        def finish() -> None:
            try:
                self._sync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)

        try:
            yield append
        except BaseException:
            # The thread may still be syncing this file: it closes it when it is done.
            self._thread.submit(os.close, handle).result()
            temporary.unlink(missing_ok=True)
            raise
        self._order(finish)

    def _sync(self, handle: int) -> None:
        # The system reports a failed write once. The next sync of the same file may well succeed.
        if self._failed:
            raise OSError(errno.EIO, "an earlier write failed")
        try:
            os.fsync(handle)
        except OSError:
            self._failed = True
            raise

    def _order(self, call: Callable[[], None]) -> None:
        self._orders.append(self._thread.submit(call))
        while len(self._orders) > _PENDING:
            self._orders.popleft().result()


def sync(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
