"""How few rows can meet a limit."""

from bisect import bisect_left
from collections.abc import Callable

MOST = 10**12
"""Rows; no table has so many."""


def fewest(meets: Callable[[int], bool], most: int = MOST) -> int | None:
    """The least of 1 .. most that meets, where every larger number does too; None where none does.

    >>> fewest(lambda rows: rows**2 > 50), fewest(lambda rows: rows**2 > 50, most=7)
    (8, None)
    """
    found = bisect_left(range(1, most + 1), True, key=meets) + 1
    return found if found <= most else None
