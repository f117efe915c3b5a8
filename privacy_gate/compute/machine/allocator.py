"""Keeps memory that torch frees on a CPU in the process, for its next tensors."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Option numbers of glibc's mallopt (malloc.h)."""

KEPT = (1 << 31) - 1
"""Free bytes at the top of the heap that are not returned to the system; the largest value that mallopt accepts."""

FROM_HEAP = 1 << 30
"""Blocks below this many bytes come from the heap; larger ones, such as a large table's features, return to the system
when freed."""


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the lifetime of the process; does nothing with another C library.

    By default, every large tensor is new memory from the system: its pages are created one by one on first access and
    returned when it is freed. A network's forward pass then spends as much time on pages as on convolutions. Threads
    are made to share one heap, because the per-thread heaps are limited to 64 MiB, less than the output of many layers.
    """
    if sys.platform != "linux":
        return
    # musl and other C libraries have no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, FROM_HEAP), (ARENA_MAX, 1)):
            mallopt(setting, value)
