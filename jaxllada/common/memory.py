"""Keeps freed memory in the process, where the allocator is glibc's.

XLA on a CPU frees and takes hundreds of megabytes a step. glibc hands such blocks back to the
system, and filling them again page by page can cost as much as the arithmetic.
"""

import ctypes
import os
import sys

_LARGEST = 2**31 - 1
_SETTINGS = {
    # parameter of mallopt(3), from malloc.h: tunable of the same meaning, value
    -3: ("mmap_threshold", _LARGEST),
    -1: ("trim_threshold", _LARGEST),
    -2: ("top_pad", 256 << 20),
    -8: ("arena_max", 1),
}


def keep_freed_memory() -> bool:
    """Tells glibc to reuse large blocks; returns whether it did.

    Call it before the first large allocation. Does nothing elsewhere, or when the user has chosen
    settings of their own (GLIBC_TUNABLES or MALLOC_*), or set JAXLLADA_MALLOC=system.
    """
    if not _is_ours_to_choose():
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(name, value) == 1 for name, (_, value) in _SETTINGS.items()])


def allocator_environment() -> dict[str, str]:
    """Variables that give a child process these settings; none where they are not ours to choose.

    glibc reads them when a program starts: this works for programs that never heard of mallopt.
    """
    if not _is_ours_to_choose():
        return {}
    parts = (f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.values())
    return {"GLIBC_TUNABLES": ":".join(parts)}


def _is_ours_to_choose() -> bool:
    chosen = os.environ.get("JAXLLADA_MALLOC") == "system" or "GLIBC_TUNABLES" in os.environ
    if chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return sys.platform.startswith("linux")
