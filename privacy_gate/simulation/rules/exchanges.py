"""A sorting network for few values: which pairs to compare, restricted to the order statistics that are needed."""

from functools import cache

Exchange = tuple[int, int, bool, bool]
"""Two places, whether the smaller value is needed at the first, and whether the larger is needed at the second."""


@cache
def exchanges(n: int, ranks: range) -> tuple[Exchange, ...]:
    """The exchanges on which these ranks of n values depend, in order."""
    needed, kept = set(ranks), []
    # Backwards from the results: an exchange is needed if a later step needs one of its outputs; then both its inputs
    # are needed too.
    for low, high in reversed(_exchanges(n)):
        if low in needed or high in needed:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


@cache
def _exchanges(n: int) -> tuple[tuple[int, int], ...]:
    """The pairs that sort n values if, one after the other, each pair in the wrong order is swapped."""
    pairs = []
    # Batcher's merge exchange, with the names of Knuth, volume 3, algorithm 5.2.2 M.
    top = p = 1 << max(0, (n - 1).bit_length() - 1)
    while p > 0:
        q, r, distance = top, 0, p
        while distance > 0:
            pairs += [(i, i + distance) for i in range(n - distance) if i & p == r]
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)
