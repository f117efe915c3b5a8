"""Functions of arrays as machine code, by Numba, where it is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., None])

REORDERED = {"reassoc", "contract", "nsz"}
"""Sums may be taken in another order, as every matrix library does; NaN and infinity stay what they are."""


def has_numba() -> bool:
    """Whether Numba is installed; importing it takes longer than asking."""
    return find_spec("numba") is not None


def compiled(function: Function) -> Function:
    """The function for the processor at hand, compiled at its first call; runs without the interpreter's lock.

    Kept on disk where there is a place for it. Modules that use this are imported only where `has_numba`.
    """
    from numba import njit  # noqa: PLC0415 - an extra, and slow to import

    try:
        made: object = njit(function, cache=True, nogil=True, fastmath=REORDERED)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        made = njit(function, nogil=True, fastmath=REORDERED)
    return cast(Function, made)
