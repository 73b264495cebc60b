"""Keeps freed memory in the process, where the allocator is glibc's.

XLA on a CPU frees and takes hundreds of megabytes a step. glibc hands such blocks back to the
system, and filling them again page by page can cost as much as the arithmetic.
"""

import ctypes
import os
import sys

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to reuse large blocks; returns whether it did.

    Call it before the first large allocation. Does nothing elsewhere, or when the user has chosen
    settings of their own (GLIBC_TUNABLES or MALLOC_*), or set JAXLLADA_MALLOC=system.
    """
    chosen = os.environ.get("JAXLLADA_MALLOC") == "system" or "GLIBC_TUNABLES" in os.environ
    if chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = {
        _MMAP_THRESHOLD: _LARGEST,
        _TRIM_THRESHOLD: _LARGEST,
        _TOP_PAD: 256 << 20,
        _ARENA_MAX: 1,
    }
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
