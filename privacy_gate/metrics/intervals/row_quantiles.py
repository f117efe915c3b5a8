"""How far the middle and the largest of many rows reach, where each row is known with an error.

Of estimates with errors the largest is too large, and more so the more rows there are and the fewer models:
among 2,000 rows that are all alike, estimated from 64 models, the largest vulnerability is off by .9. So
figures come from the distribution of the rows behind their errors, and their ends from counting rows.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtri

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError

GRID = 200
"""Values among which the distribution behind the errors is sought."""

STEPS = 400
"""Steps of expectation and maximisation; the likelihood is concave, and later ones move nothing that is shown."""

RANKS = (0.3, 0.5, 0.7, 0.9, 1.0)
"""Shares of the rows beyond a quantile that must be seen beyond an end of its interval."""


@dataclass(frozen=True)
class RowEstimates:
    """One figure for each row and its standard error, both (N,), of the figure's unit.

    Errors are Gaussian, and those of different rows independent: models share their noise, but which rows
    a model was trained on is drawn for each row.
    """

    value: Floats
    error: Floats

    def __post_init__(self) -> None:
        if self.value.shape != self.error.shape or not len(self.value):
            raise EvidenceError(f"{self.value.shape} values and {self.error.shape} errors, expected as many, and some")
        if not (np.isfinite(self.value).all() and np.isfinite(self.error).all() and (self.error > 0).all()):
            raise EvidenceError("expected finite values with errors above 0: use more references")


@dataclass(frozen=True)
class Deconvolved:
    """The rows' distribution behind their errors, and each row in its light.

    grid, weight (K,): values, ascending, and the share of the rows that have them
    cell (N,): which of the P profiles each row has; rows with all but equal value and error share one
    posterior (P, K): how likely each value is for the rows of a profile
    """

    grid: Floats
    weight: Floats
    cell: np.ndarray[tuple[int], np.dtype[np.intp]]
    posterior: Floats

    @property
    def shrunk(self) -> Floats:
        """Each row's expected figure, (N,)."""
        return np.asarray((self.posterior @ self.grid)[self.cell])

    def quantile(self, q: float) -> float:
        """The figure that a share 1 - q of the rows reaches; at q = 1 the median of the largest."""
        if q < 1:
            at = np.searchsorted(np.cumsum(self.weight), q + 1e-9)
        else:
            below = np.clip(np.cumsum(self.posterior, axis=1), 1e-300, 1.0)
            at = np.searchsorted(np.bincount(self.cell, minlength=len(below)) @ np.log(below), np.log(0.5))
        return float(self.grid[min(int(at), len(self.grid) - 1)])


def deconvolve(rows: RowEstimates) -> Deconvolved:
    """Maximum-likelihood distribution of what the rows are estimates of, and posteriors given it.

    Kiefer & Wolfowitz 1956, by expectation and maximisation on a grid over the estimates' range; no shape
    is assumed, so a few rows far from the others are not drawn to them as a Gaussian prior would.
    """
    low, high = float(rows.value.min()), float(rows.value.max())
    width = max((high - low) / 1000, 1e-12)
    profile = np.stack([np.round((rows.value - low) / width), np.round(8 * np.log2(rows.error))])
    profiles, cell, count = np.unique(profile, axis=1, return_inverse=True, return_counts=True)
    value, error = low + profiles[0] * width, np.exp2(profiles[1] / 8)
    grid = np.linspace(low, high, GRID) if high > low else np.array([low])
    distance = ((value[:, None] - grid) / error[:, None]) ** 2 / 2
    likelihood = np.exp(distance.min(axis=1, keepdims=True) - distance)
    weight = np.full(len(grid), 1 / len(grid))
    for _ in range(STEPS):
        weight = weight * (count / (likelihood @ weight) @ likelihood) / len(rows.value)
    posterior = likelihood * weight
    posterior /= posterior.sum(axis=1, keepdims=True)
    return Deconvolved(grid, weight, np.asarray(cell).reshape(-1), posterior)


def quantile_ends(rows: RowEstimates, q: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval of the figure that a share 1 - q of these very rows reaches; q = 1: the largest.

    The k rows that truly reach it each show it with probability p after p's quantile of their error is
    added; at least r of them do but with a probability that the binomial distribution gives. So the r-th
    largest of the raised figures is above it. Likewise from below. The best of RANKS counts, at a
    confidence that holds for all (Bonferroni); for the largest row alone that is its own one-sided limit.
    """
    total = len(rows.value)
    reach = max(1, int((1 - q) * total + 1e-9))
    ends = []
    for sign, count in ((-1, total - reach + 1), (1, reach)):
        ranks = np.unique(np.ceil(np.array(RANKS) * count).astype(int))
        tail = (1 - confidence) / 2 / len(ranks)
        raised = sign * rows.value + ndtri(betaincinv(ranks, count - ranks + 1, 1 - tail))[:, None] * rows.error
        ends.append(
            sign * min(float(np.partition(own, total - r)[total - r]) for own, r in zip(raised, ranks, strict=True))
        )
    return ends[0], ends[1]


def quantile(rows: RowEstimates, known: Deconvolved, q: float, confidence: float) -> tuple[float, float, float]:
    """low, value, high of the figure that a share 1 - q of the rows reaches."""
    low, high = quantile_ends(rows, q, confidence)
    value = known.quantile(q)
    return min(low, value), value, max(high, value)
