"""The median and the largest of many rows, if each row's figure is an estimate with an error.

The largest of many estimates is biased upwards, more so with more rows and fewer models: among 2,000 identical rows,
estimated from 64 models, the largest vulnerability is too high by 0.9. So the figures come from the deconvolved
distribution of the rows, and the ends of their intervals from counting rows.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtri

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError

GRID = 200
"""Grid points of the deconvolved distribution."""

STEPS = 400
"""Steps of expectation and maximisation. The likelihood is concave; later steps change no reported digit."""

RANKS = (0.3, 0.5, 0.7, 0.9, 1.0)
"""Shares of the rows beyond a quantile that must be observed beyond an end of its interval; the best one counts."""


@dataclass(frozen=True)
class RowEstimates:
    """One figure for each row and its standard error, both (N,), in the figure's unit.

    Errors are Gaussian and independent between rows: rows share the models' noise, but which models are trained on a
    row is drawn for each row.
    """

    value: Floats
    error: Floats

    def __post_init__(self) -> None:
        if self.value.shape != self.error.shape or not len(self.value):
            raise EvidenceError(
                f"{self.value.shape} values and {self.error.shape} errors, expected equal numbers and at least one"
            )
        if not (np.isfinite(self.value).all() and np.isfinite(self.error).all() and (self.error > 0).all()):
            raise EvidenceError("expected finite values with errors above 0: use more references")


@dataclass(frozen=True)
class Deconvolved:
    """The distribution of the rows without their errors, and each row's posterior under it.

    grid, weight (K,): values, ascending, and the share of rows with each value
    cell (N,): the profile of each row, one of P; rows with nearly equal value and error share a profile
    posterior (P, K): the probability of each value for the rows of a profile
    """

    grid: Floats
    weight: Floats
    cell: np.ndarray[tuple[int], np.dtype[np.intp]]
    posterior: Floats

    @property
    def shrunk(self) -> Floats:
        """The posterior mean of each row's figure, (N,)."""
        return np.asarray((self.posterior @ self.grid)[self.cell])

    def quantile(self, q: float) -> float:
        """The figure that a share 1 - q of the rows reaches; at q = 1, the median of the largest row's distribution."""
        if q < 1:
            at = np.searchsorted(np.cumsum(self.weight), q + 1e-9)
        else:
            # The largest row lies below a value with the product of all rows' probabilities: .5 at its median.
            below = np.clip(np.cumsum(self.posterior, axis=1), 1e-300, 1.0)
            at = np.searchsorted(np.bincount(self.cell, minlength=len(below)) @ np.log(below), np.log(0.5))
        return float(self.grid[min(int(at), len(self.grid) - 1)])


def deconvolve(rows: RowEstimates) -> Deconvolved:
    """Maximum-likelihood distribution of the true figures behind the rows' estimates, and posteriors under it.

    Kiefer & Wolfowitz 1956, by expectation and maximisation on a grid over the estimates' range. No shape is assumed,
    so a few rows far from the others are not shrunk towards them as under a Gaussian prior.
    """
    low, high = float(rows.value.min()), float(rows.value.max())
    # Rows are binned by value (1000 bins) and error (eighths of an octave): P profiles instead of N rows keep it fast.
    width = max((high - low) / 1000, 1e-12)
    profile = np.stack([np.round((rows.value - low) / width), np.round(8 * np.log2(rows.error))])
    profiles, cell, count = np.unique(profile, axis=1, return_inverse=True, return_counts=True)
    value, error = low + profiles[0] * width, np.exp2(profiles[1] / 8)
    grid = np.linspace(low, high, GRID) if high > low else np.array([low])
    distance = ((value[:, None] - grid) / error[:, None]) ** 2 / 2
    # A factor per profile cancels in both steps below; dividing by the largest keeps the exponentials from underflow.
    likelihood = np.exp(distance.min(axis=1, keepdims=True) - distance)
    weight = np.full(len(grid), 1 / len(grid))
    for _ in range(STEPS):
        weight = weight * (count / (likelihood @ weight) @ likelihood) / len(rows.value)
    posterior = likelihood * weight
    posterior /= posterior.sum(axis=1, keepdims=True)
    return Deconvolved(grid, weight, np.asarray(cell).reshape(-1), posterior)


def quantile_ends(rows: RowEstimates, q: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval of the figure that a share 1 - q of exactly these rows reaches; q = 1: the largest.

    For the high end: k rows truly reach the figure. If the p-quantile of its error is added to each row's estimate,
    each of these rows reaches the figure with probability p, so the binomial distribution gives the probability that
    at least r of them do. The r-th largest of the raised estimates is then an upper limit. The low end mirrors this.
    The best of RANKS counts, at a confidence that holds for all of them (Bonferroni); for the largest row there is
    only one rank, and the limit is its own one-sided limit.
    """
    total = len(rows.value)
    reach = max(1, int((1 - q) * total + 1e-9))
    ends = []
    for sign, count in ((-1, total - reach + 1), (1, reach)):
        ranks = np.unique(np.ceil(np.array(RANKS) * count).astype(int))
        tail = (1 - confidence) / 2 / len(ranks)
        # betaincinv inverts the binomial tail: the p with which at least r of `count` rows exceed, at this confidence.
        raised = sign * rows.value + ndtri(betaincinv(ranks, count - ranks + 1, 1 - tail))[:, None] * rows.error
        ends.append(
            sign * min(float(np.partition(row, total - r)[total - r]) for row, r in zip(raised, ranks, strict=True))
        )
    return ends[0], ends[1]


def quantile(rows: RowEstimates, known: Deconvolved, q: float, confidence: float) -> tuple[float, float, float]:
    """low, value, high of the figure that a share 1 - q of the rows reaches."""
    low, high = quantile_ends(rows, q, confidence)
    value = known.quantile(q)
    return min(low, value), value, max(high, value)
