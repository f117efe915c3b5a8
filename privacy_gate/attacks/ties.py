"""Breaking ties: shares of a finite sample tie, and a threshold inside a tie has no false positive rate."""

import numpy as np
from scipy.stats import rankdata

from privacy_gate.arrays import Floats


def break_ties(share: Floats, finer: Floats, step: float) -> Floats:
    """Orders rows by share, and rows of equal share by `finer`; (N,).

    step: a lower bound for the distance between two different shares. Less than one step is added, so different shares
    keep their order: the result is exactly the lexicographic order of (share, finer).

    >>> break_ties(np.array([0.5, 0.5, 1.0]), np.array([2.0, 1.0, 0.0]), step=0.5).argsort().tolist()
    [1, 0, 2]
    """
    return np.asarray(share + step * rankdata(finer) / (len(finer) + 1))


def share_below(value: Floats, sample: Floats) -> Floats:
    """Share of the sample (Z,) strictly below each value (N,): (N,), ties broken by the value itself."""
    below = np.searchsorted(np.sort(sample), value, side="left")
    return break_ties(below / len(sample), value, 1 / len(sample))
