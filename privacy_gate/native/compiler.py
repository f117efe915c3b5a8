"""Compiles functions of arrays to machine code with Numba, if it is installed."""

import importlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])

REORDERED = {"reassoc", "contract", "nsz"}
"""Sums may be reordered and products fused with sums, as matrix libraries do; NaN and infinity keep their meaning."""

SETTINGS: dict[str, Any] = {"nogil": True, "forceinline": True, "fastmath": REORDERED, "error_model": "numpy"}
"""How every function is compiled.

forceinline   a function is part of the code of those that call it. Otherwise a process that has just compiled runs the
              callee's own code and one that loads from disk runs a copy, optimised separately: last bits differed
error_model   a division by zero gives inf or NaN as in NumPy; checking for it would keep loops from being vectorised
"""


@cache
def has_numba() -> bool:
    """Whether Numba is installed and can be imported: it raises ImportError for a NumPy newer than it supports."""
    if find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


def compiled(function: Function) -> Function:
    """The function, compiled for this processor at its first call. It runs without the interpreter's lock.

    The machine code is kept on disk if possible, see `native.cache`. Import modules that use this only if `has_numba`.
    """
    from numba import njit  # noqa: PLC0415 - an extra, and slow to import

    from privacy_gate.native.cache import cache_of  # noqa: PLC0415 - needs Numba

    made, kept = njit(function, **SETTINGS), cache_of(function)
    if kept is not None:
        made._cache = kept  # as Numba does for cache=True, but with a cache that notices every change
    return cast(Function, made)
