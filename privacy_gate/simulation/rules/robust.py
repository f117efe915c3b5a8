"""Rules that resist f arbitrary updates out of n, based on order statistics or on distances.

Every rule maps updates (..., n, d), f and the server's knowledge to (..., d); see known.py. Rows with inf or NaN count
as infinitely far away. No rule modifies its input.
"""

from itertools import combinations

import torch

from privacy_gate.simulation.rules.geometry import (
    closest_to_middle,
    compiles,
    coordinate_median,
    finite_rows,
    inner_products,
    mean_of,
    mean_of_ranks,
    ordered,
    smallest,
    squared_distances,
    weighted_sum,
)
from privacy_gate.simulation.rules.known import NOTHING, Known, refuse_few

FAR = 1e6
"""Multiple of the median distance; the geometric median pulls updates beyond it in, keeping only their direction."""

CHUNK = 256
"""Number of subsets whose diameters are compared at once."""


def median(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Coordinate-wise median: Yin et al. 2018 (arXiv 1803.01498)."""
    refuse_few(updates, f, "median")
    return coordinate_median(updates)


def trimmed_mean(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Coordinate-wise mean without the f smallest and the f largest: Yin et al. 2018 (arXiv 1803.01498)."""
    refuse_few(updates, f, "trimmed_mean")
    return mean_of_ranks(updates, range(f, updates.shape[-2] - f)) if f else updates.mean(-2)


def meamed(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Coordinate-wise mean of the n - f values closest to the median: Xie et al. 2018 (arXiv 1802.10116)."""
    refuse_few(updates, f, "meamed")
    return closest_to_middle(ordered(updates), updates.shape[-2] - f)


def krum_scores(distances: torch.Tensor, nearest: int) -> torch.Tensor:
    """Sum of squared distances (..., n, n) from each update to its `nearest` nearest others, at least 1: (..., n)."""
    # Index 0 is the update's distance to itself.
    return distances.sort(dim=-1).values[..., 1 : 1 + max(1, nearest)].sum(-1)


def krum(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """The update with the lowest Krum score: Blanchard et al. 2017. ByzFL 0.0.11 uses n - f - 1 neighbours instead."""
    refuse_few(updates, f, "krum")
    return krum_mean(updates, updates.shape[-2] - f - 2, 1)


def multi_krum(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """The mean of the n - f updates with the lowest Krum scores: Blanchard et al. 2017."""
    refuse_few(updates, f, "multi_krum")
    return krum_mean(updates, updates.shape[-2] - f - 2, updates.shape[-2] - f)


def krum_mean(updates: torch.Tensor, nearest: int, count: int) -> torch.Tensor:
    """The mean (..., d) of the `count` updates (..., n, d) with the lowest Krum scores; of equal ones the first."""
    if compiles(updates):
        from privacy_gate.native import rules as compiled_rules  # noqa: PLC0415

        return compiled_rules.krum_mean(updates, nearest, count)
    return stacked_krum(updates, nearest, count)


def stacked_krum(updates: torch.Tensor, nearest: int, count: int) -> torch.Tensor:
    """`krum_mean` in torch."""
    return mean_of(updates, smallest(krum_scores(squared_distances(updates), nearest), count))


def bulyan(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Krum selects n - 2f updates one by one; of these, each coordinate averages the n - 4f values nearest the median.

    El Mhamdi et al. 2018 (arXiv 1802.07927). With f <= 2 the last selections use a single neighbour, so two updates
    nearest to each other tie, and the first is taken, as in Flower.
    """
    refuse_few(updates, f, "bulyan")
    n = updates.shape[-2]
    clean, finite = finite_rows(updates)
    distances, order = squared_distances(updates), []
    gone = torch.zeros_like(finite)
    for taken in range(n - 2 * f):
        scores = krum_scores(distances, n - taken - f - 2)
        # An infinite score is lowered to a finite one, so that even such an update is chosen before one already taken.
        pick = scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(gone, torch.inf).argmin(-1)
        order.append(pick)
        index = pick.unsqueeze(-1)
        gone = gone.scatter(-1, index, True)
        # Selected updates are no longer neighbours of the rest.
        distances = distances.masked_fill(gone.unsqueeze(-2), torch.inf)
        distances.diagonal(dim1=-2, dim2=-1).zero_()
    picked = torch.stack(order, -1).unsqueeze(-1).expand(*updates.shape[:-2], n - 2 * f, updates.shape[-1])
    return closest_to_middle(ordered(clean.gather(-2, picked)), n - 4 * f)


def geometric_median(
    updates: torch.Tensor, f: int, known: Known = NOTHING, *, nu: float = 0.1, iterations: int = 5
) -> torch.Tensor:
    """The point with the smallest sum of distances, smoothed below nu, by Weiszfeld's iteration.

    Pillutla et al. 2022 (arXiv 1912.13445). It starts from the coordinate-wise median, which f updates cannot move far.
    """
    refuse_few(updates, f, "geometric_median")
    return weiszfeld(updates, coordinate_median(updates), nu, iterations)


def weiszfeld(updates: torch.Tensor, start: torch.Tensor, nu: float, iterations: int) -> torch.Tensor:
    """`iterations` smoothed steps from `start` (..., d), each to the mean weighted by 1 / max(nu, distance).

    Every iterate is start plus a weighted mean of the differences u_i - start, so all distances follow from the n x n
    inner products of these differences. An update beyond FAR times the median distance is pulled in to it: only its
    direction matters.
    """
    if compiles(updates):
        from privacy_gate.native import rules as compiled_rules  # noqa: PLC0415

        return compiled_rules.weiszfeld(updates, start, nu, iterations, FAR)
    return stacked_weiszfeld(updates, start, nu, iterations)


def stacked_weiszfeld(updates: torch.Tensor, start: torch.Tensor, nu: float, iterations: int) -> torch.Tensor:
    """`weiszfeld` in torch."""
    clean, finite = finite_rows(updates)
    away = clean - start.unsqueeze(-2)
    gram = inner_products(away)
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    near = length.masked_fill(~finite, torch.inf).sort(-1).values[..., (length.shape[-1] - 1) // 2].unsqueeze(-1)
    shrink = torch.where(length > FAR * near, FAR * near / length, 1.0)
    # Inner products of rows that are not finite, or that overflow, count as 0; `finite` gives such rows no weight.
    gram = torch.nan_to_num(gram * shrink.unsqueeze(-1) * shrink.unsqueeze(-2), nan=0.0, posinf=0.0)
    square = gram.diagonal(dim1=-2, dim2=-1)
    distance = square.sqrt()
    weight = torch.zeros_like(square)
    for _ in range(iterations):
        weight = finite / distance.clamp(min=nu)
        weight = weight / weight.sum(-1, keepdim=True)
        # |u_i - p|^2 = |a_i|^2 - 2 a_i.m + |m|^2, with a_i = u_i - start and m = sum_j weight_j a_j = p - start.
        inner = (gram * weight.unsqueeze(-2)).sum(-1)
        distance = (square - 2 * inner + (weight * inner).sum(-1, keepdim=True)).clamp_(min=0).sqrt_()
    return start + weighted_sum(away, weight * shrink)


def minimum_diameter(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """The mean of the n - f updates with the smallest diameter (largest distance): El Mhamdi et al. 2018 (MDA).

    Raises ConfigurationError if there are more than needs.SUBSETS ways to choose them.
    """
    refuse_few(updates, f, "minimum_diameter")
    n = updates.shape[-2]
    subsets = torch.tensor(list(combinations(range(n), n - f)), device=updates.device)
    distances = squared_distances(updates)
    best = torch.full(updates.shape[:-2], torch.inf, dtype=torch.float64, device=updates.device)
    winner = torch.zeros(updates.shape[:-2], dtype=torch.int64, device=updates.device)
    for first in range(0, len(subsets), CHUNK):
        part = subsets[first : first + CHUNK]
        diameter = distances[..., part.unsqueeze(-1), part.unsqueeze(-2)].amax((-1, -2))
        value, index = diameter.min(-1)
        winner = torch.where(value < best, index + first, winner)
        best = torch.minimum(value, best)
    chosen = torch.zeros(updates.shape[:-1], dtype=torch.bool, device=updates.device)
    return mean_of(updates, chosen.scatter_(-1, subsets[winner], True))
