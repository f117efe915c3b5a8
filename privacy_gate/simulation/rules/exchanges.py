"""Which pairs are compared to sort few values as far as it is needed."""

from functools import cache

Exchange = tuple[int, int, bool, bool]
"""Two places, and whether the lesser value is wanted at the first, the greater at the second."""


@cache
def exchanges(n: int, ranks: range) -> tuple[Exchange, ...]:
    """Those that the ranks of n values depend on, in order."""
    wanted, found = set(ranks), []
    for low, high in reversed(_exchanges(n)):
        if low in wanted or high in wanted:
            found.append((low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(found))


@cache
def _exchanges(n: int) -> tuple[tuple[int, int], ...]:
    """The pairs that sort n values when exchanged, where out of order, one after the other."""
    pairs = []
    top = p = 1 << max(0, (n - 1).bit_length() - 1)
    while p > 0:
        q, r, distance = top, 0, p
        while distance > 0:
            pairs += [(i, i + distance) for i in range(n - distance) if i & p == r]
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)
