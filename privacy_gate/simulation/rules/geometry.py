"""Order statistics and distances of updates, for any leading axes; an update with inf or NaN is far from all others."""

from collections.abc import Iterable

import torch

from privacy_gate.native.compiler import has_numba
from privacy_gate.simulation.rules.exchanges import Exchange, exchanges


def finite_rows(updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Updates (..., n, d) with every row that contains inf or NaN set to 0, and which rows are finite, (..., n).

    A row whose sum overflows counts as containing inf.
    """
    # inf and NaN survive a sum, so one number per row is tested, not d.
    finite = torch.isfinite(updates.sum(-1))
    if bool(finite.all()):
        return updates, finite
    return torch.where(finite.unsqueeze(-1), updates, 0), finite


def squared_distances(updates: torch.Tensor) -> torch.Tensor:
    """Squared distances of all pairs of updates (..., n, d): (..., n, n) float64, >= 0, inf for rows not finite.

    Computed from the Gram matrix in float64; for float32 updates its rounding error is below theirs.
    """
    if compiles(updates):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.squared_distances(updates)
    return widened_distances(updates)


def widened_distances(updates: torch.Tensor) -> torch.Tensor:
    """`squared_distances` in torch."""
    known, finite = finite_rows(updates)
    inner = widened_products(known)
    square = inner.diagonal(dim1=-2, dim2=-1)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b; rounding may make it negative, and inf - inf makes it NaN.
    distances = torch.clamp(square.unsqueeze(-1) + square.unsqueeze(-2) - 2 * inner, min=0)
    apart = ~(finite.unsqueeze(-1) & finite.unsqueeze(-2)) | distances.isnan()
    distances.masked_fill_(apart, torch.inf)
    distances.diagonal(dim1=-2, dim2=-1).zero_()
    return distances


def inner_products(updates: torch.Tensor) -> torch.Tensor:
    """Inner products of all pairs of updates (..., n, d), summed in float64: (..., n, n) float64."""
    if compiles(updates):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.inner_products(updates)
    return widened_products(updates)


def widened_products(updates: torch.Tensor) -> torch.Tensor:
    """`inner_products` in torch, from a float64 copy."""
    wide = updates.contiguous().double()
    return wide @ wide.transpose(-1, -2)


def compiles(updates: torch.Tensor) -> bool:
    """Whether compiled versions of these functions are available: updates are on a CPU and Numba is installed.

    Callers import them only then, because Numba is an optional dependency and slow to import.
    """
    return updates.device.type == "cpu" and has_numba()


def norms(updates: torch.Tensor) -> torch.Tensor:
    """Euclidean norms (...,) float64 of vectors (..., d), summed in float64."""
    if compiles(updates):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.norms(updates)
    lengths: torch.Tensor = torch.linalg.vector_norm(updates, dim=-1, dtype=torch.float64)
    return lengths


def moments(updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (ddof 1) of each coordinate of (..., n, d), both (..., d); for n = 1 deviation 0."""
    if compiles(updates):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.moments(updates)
    return stacked_moments(updates)


def stacked_moments(updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`moments` in torch; faster than torch.std."""
    mean = updates.mean(-2)
    away = updates - mean.unsqueeze(-2)
    return mean, (away.square_().sum(-2) / max(1, updates.shape[-2] - 1)).sqrt_()


def mean_of(updates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean (..., d) of the rows of (..., n, d) that are finite and `chosen` (..., n); 0 if there are none."""
    known, finite = finite_rows(updates)
    weight = (chosen & finite).to(updates.dtype)
    weight /= weight.sum(-1, keepdim=True).clamp(min=1)
    return weighted_sum(known, weight)


def weighted_sum(updates: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum over n of weight (..., n) times updates (..., n, d): (..., d)."""
    return (weight.to(updates.dtype).unsqueeze(-2) @ updates).squeeze(-2)


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True for the `count` smallest scores on the last axis; of equal ones the first. Same shape as `scores`."""
    order = scores.sort(dim=-1, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def ordered(updates: torch.Tensor, ranks: range | None = None) -> list[torch.Tensor]:
    """The order statistics of each coordinate of (..., n, d), ascending, each (..., d); NaN counts as +inf.

    ranks: which order statistics, counted from 0; None: all n. Uses Batcher's merge exchange (Knuth, volume 3,
    algorithm 5.2.2 M): a fixed sequence of minima and maxima over whole updates, many times faster than sorting n
    values at a time. Exchanges that no requested rank depends on are left out.
    """
    n = updates.shape[-2]
    requested = ranks or range(n)
    needed = exchanges(n, requested)
    if compiles(updates):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.ordered(updates, needed, requested)
    return exchanged(updates, needed, requested)


def exchanged(updates: torch.Tensor, needed: Iterable[Exchange], ranks: Iterable[int]) -> list[torch.Tensor]:
    """`ordered` in torch, with one pass over two updates for each exchange."""
    if bool(updates.sum().isnan()):  # also true for inf - inf without any NaN; the replacement then does nothing
        updates = torch.where(updates.isnan(), torch.inf, updates)
    rows = list(updates.unbind(-2))
    for low, high, least, most in needed:
        first, second = rows[low], rows[high]
        if least:
            rows[low] = torch.minimum(first, second)
        if most:
            rows[high] = torch.maximum(first, second)
    return [rows[rank] for rank in ranks]


def mean_of_ranks(updates: torch.Tensor, ranks: range) -> torch.Tensor:
    """The mean of the order statistics `ranks` of each coordinate of (..., n, d): (..., d); NaN counts as +inf."""
    if compiles(updates):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.mean_of_ranks(updates, exchanges(updates.shape[-2], ranks), ranks)
    rows = ordered(updates, ranks)
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total / len(rows)


def coordinate_median(updates: torch.Tensor) -> torch.Tensor:
    """The median of each coordinate of updates (..., n, d): (..., d); NaN counts as +inf."""
    n = updates.shape[-2]
    # One rank for odd n, the two middle ranks for even n.
    return mean_of_ranks(updates, range((n - 1) // 2, n // 2 + 1))


def middle(rows: list[torch.Tensor]) -> torch.Tensor:
    """The median of ascending order statistics, each (..., d): for an even number, the mean of the middle two."""
    half = len(rows) // 2
    return rows[half] if len(rows) % 2 else (rows[half - 1] + rows[half]) / 2


def closest_to_middle(rows: list[torch.Tensor], keep: int) -> torch.Tensor:
    """For each coordinate, the mean of the `keep` order statistics closest to the median: (..., d).

    These are consecutive, so it is the run of `keep` whose farther end is closest to the median.
    """
    centre = middle(rows)
    best = reach = None
    for first in range(len(rows) - keep + 1):
        run = rows[first : first + keep]
        far = torch.maximum(centre - run[0], run[-1] - centre)
        mean = torch.stack(run).mean(0)
        if best is None or reach is None:
            best, reach = mean, far
            continue
        nearer = far < reach
        best, reach = torch.where(nearer, mean, best), torch.where(nearer, far, reach)
    return centre if best is None else best
