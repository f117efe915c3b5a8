"""Memory that torch gives back on a CPU, kept for its next tensors."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""What glibc's mallopt calls its settings (malloc.h)."""

KEPT = (1 << 31) - 1
"""Bytes at the end of the heap that are not returned to the system; the largest number mallopt takes."""

FROM_HEAP = 1 << 30
"""Blocks of fewer bytes come from the heap; larger ones, as a large table's features, are the system's again when
freed."""


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, for as long as the process lives; does nothing where there is another C library.

    By its defaults every large tensor is new memory from the system, whose pages are made one by one when first touched
    and are gone when it is freed: a network's forward pass spends as long on that as on its convolutions. Threads share
    one heap, since those that they have otherwise end at 64 MiB, less than many a layer's output.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, FROM_HEAP), (ARENA_MAX, 1)):
            mallopt(setting, value)
