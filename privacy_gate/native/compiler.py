"""Functions of arrays as machine code, by Numba, where it is installed."""

import importlib
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])

REORDERED = {"reassoc", "contract", "nsz"}
"""Sums may be taken in another order, as every matrix library does; NaN and infinity stay what they are."""

SETTINGS: dict[str, Any] = {"nogil": True, "fastmath": REORDERED, "error_model": "numpy"}
"""A division by zero is what it is to NumPy: to look out for it, as Python does, keeps loops from being vectors."""

ROOM = 64 << 20
"""Bytes that a disk must have free for machine code to be kept there."""


@cache
def has_numba() -> bool:
    """Whether Numba is installed and works: it refuses a NumPy newer than it knows."""
    if find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


def compiled(function: Function) -> Function:
    """The function for the processor at hand, compiled at its first call; runs without the interpreter's lock.

    Kept on disk where there is a place for it. Modules that use this are imported only where `has_numba`.
    """
    from numba import njit  # noqa: PLC0415 - an extra, and slow to import

    try:
        kept = njit(function, cache=True, **SETTINGS)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return cast(Function, njit(function, **SETTINGS))
    place = Path(kept.stats.cache_path)
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if shutil.disk_usage(there).free < ROOM:
        return cast(Function, njit(function, **SETTINGS))
    return cast(Function, kept)
