"""Functions of arrays as machine code, by Numba, where it is installed."""

import importlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])

REORDERED = {"reassoc", "contract", "nsz"}
"""Sums may be taken in another order, as every matrix library does; NaN and infinity stay what they are."""

SETTINGS: dict[str, Any] = {"nogil": True, "forceinline": True, "fastmath": REORDERED, "error_model": "numpy"}
"""How every function is compiled.

forceinline   a function is part of the code of those that call it. Otherwise a process that has just compiled runs the
              callee's own code and one that loads from disk runs a copy, optimised separately: last bits differed
error_model   a division by zero gives inf or NaN as in NumPy; checking for it would keep loops from being vectorised
"""


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

    Kept on disk if there is a place for it, see `native.cache`. Modules that use this are imported only if `has_numba`.
    """
    from numba import njit  # noqa: PLC0415 - an extra, and slow to import

    from privacy_gate.native.cache import cache_of  # noqa: PLC0415 - needs Numba

    made, kept = njit(function, **SETTINGS), cache_of(function)
    if kept is not None:
        made._cache = kept  # as Numba does for cache=True, but with a cache that notices every change
    return cast(Function, made)
