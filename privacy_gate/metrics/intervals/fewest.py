"""The smallest number of rows that can meet a limit."""

from bisect import bisect_left
from collections.abc import Callable

MOST = 10**12
"""More rows than any table has."""


def fewest(meets: Callable[[int], bool], most: int = MOST) -> int | None:
    """The smallest of 1 .. most that meets, if every larger number meets too; None if none does.

    >>> fewest(lambda rows: rows**2 > 50), fewest(lambda rows: rows**2 > 50, most=7)
    (8, None)
    """
    smallest = bisect_left(range(1, most + 1), True, key=meets) + 1
    return smallest if smallest <= most else None
