"""Differences of paired shares: two models on the same rows, or one model on two versions of its rows."""

import numpy as np
from scipy.special import ndtri

from privacy_gate.arrays import Floats, Ints

HALVINGS = 50
"""Bisection steps in the search for an end, from an interval of width 2."""


def paired_score(won: Ints, lost: Ints, rows: Ints, difference: float | Floats) -> Floats:
    """Standard normal scores (K,) that test the accuracies of two models on the same rows against a `difference`.

    won, lost, rows (K,): rows that only the first model is right on, rows that only the second is right on, and all
    rows; -1 < difference < 1. Positive if the first model is better than the second by more than `difference`. The
    variance is that of the most likely shares with this difference, so it does not vanish if the models agree on every
    row: Tango 1998, Statistics in Medicine 17.
    """
    n, d = rows.astype(float), difference
    # The maximum-likelihood share that only the second is right on solves 2 n q^2 + linear q - lost d (1 - d) = 0.
    linear = (2 * n - won + lost) * d - won - lost
    root = np.sqrt(np.maximum(0, linear**2 + 8 * n * lost * d * (1 - d)))
    only_second = (root - linear) / (4 * n)
    variance = n * (2 * only_second + d * (1 - d))
    return np.asarray((won - lost - n * d) / np.sqrt(np.maximum(variance, 1e-300)))


def paired_interval(won: Ints, lost: Ints, rows: Ints, confidence: float) -> tuple[Floats, Floats]:
    """Low and high ends (K,) of each paired difference: the range that `paired_score` does not reject."""
    reach = float(ndtri((1 + confidence) / 2))
    ends = []
    for bound in (reach, -reach):
        # The score falls as the difference grows, so each end is where it crosses the bound.
        low, high = np.full(len(rows), -1.0), np.full(len(rows), 1.0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = paired_score(won, lost, rows, middle) > bound
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        ends.append((low + high) / 2)
    return ends[0], ends[1]
