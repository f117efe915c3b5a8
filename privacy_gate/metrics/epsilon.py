"""Lower bounds of epsilon: how much privacy loss an attack has proved, whatever a dossier claims.

A bound holds with probability 1 - level only if the threshold, or the number of guesses, was fixed before the scores
that it counts were seen. The best of many thresholds proves nothing.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from privacy_gate.metrics.intervals.binomial import clopper_pearson

LARGEST = 50.0
"""Bounds are searched up to here: e^50 is no privacy at all."""


def highest_rates(caught: int, members: int, accused: int, holdout: int, level: float = 0.05) -> tuple[float, float]:
    """Upper ends of the false positive and false negative rates at a threshold fixed beforehand.

    `caught` members and `accused` holdout rows are above the threshold. Both ends hold together with probability
    1 - level.

    >>> [round(rate, 4) for rate in highest_rates(60, 128, 5, 128)]
    [0.0888, 0.62]
    """
    fpr = clopper_pearson(accused, holdout, 1 - level)[1]
    fnr = clopper_pearson(members - caught, members, 1 - level)[1]
    return fpr, fnr


def epsilon_bound(fpr: float, fnr: float, delta: float) -> float:
    """The epsilon below which no (epsilon, delta)-DP training allows both rates: Kairouz et al. 2015.

    fpr, fnr: upper ends from `highest_rates`. 0 if they prove nothing.

    >>> round(epsilon_bound(*highest_rates(60, 128, 5, 128), delta=1e-5), 3)
    1.454
    """
    ratios = [(1 - delta - other) / rate for rate, other in ((fpr, fnr), (fnr, fpr)) if rate > 0]
    return max(0.0, *(math.log(ratio) if ratio > 0 else 0.0 for ratio in ratios))


def gaussian_mu_bound(fpr: float, fnr: float) -> float:
    """The mu below which no mu-GDP training allows both rates: Dong et al. 2022 (arXiv 1905.02383).

    Valid for Gaussian mechanisms. A trained model is not known to be one, so the bound is model-based.
    """
    return max(0.0, float(ndtri(1 - fpr) - ndtri(fnr)))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(epsilon) of a mu-GDP mechanism: Dong et al. 2022."""
    if mu <= 0:
        return 0.0
    return float(ndtr(-epsilon / mu + mu / 2) - math.exp(epsilon) * ndtr(-epsilon / mu - mu / 2))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at which a mu-GDP mechanism has this delta; 0 if its delta at epsilon 0 is already smaller."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, LARGEST, xtol=1e-10))


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, level: float = 0.05) -> float:
    """Lower bound of epsilon from one training run: Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846).

    Each of the canaries was included with probability 1/2. `right` of the `guesses` were right; the number of guesses
    was fixed beforehand.
    """

    def chance(epsilon: float) -> float:
        # The paper's bound on the probability of so many right guesses: binomial, plus a correction for delta.
        q = 1 / (1 + math.exp(-epsilon))
        beta = float(binom.sf(right - 1, guesses, q))
        below = binom.cdf(right - 1, guesses, q) - binom.cdf(right - 1 - np.arange(1, right + 1), guesses, q)
        alpha = float(np.max(below / np.arange(1, right + 1))) if right else 0.0
        return beta + 2 * canaries * delta * alpha

    if chance(0.0) >= level:
        return 0.0
    if chance(LARGEST) < level:
        return LARGEST
    return float(brentq(lambda epsilon: chance(epsilon) - level, 0.0, LARGEST, xtol=1e-10))


def one_run_gaussian_epsilon(canaries: int, guesses: int, right: int, delta: float, level: float = 0.05) -> float:
    """Lower bound of epsilon from one run, for Gaussian trade-off curves: Mahloujifar et al. 2024 (f-DP in one run).

    As `one_run_epsilon`, but tighter and model-based: it finds the largest mu at which so many right guesses are too
    unlikely, and converts it to epsilon at delta.
    """
    if not right or not _too_unlikely(canaries, guesses, right, 0.0, level):
        return 0.0
    low, high = 0.0, 2 * math.sqrt(2 * LARGEST)
    for _ in range(60):  # bisection down to the last bits of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if _too_unlikely(canaries, guesses, right, middle, level) else (low, middle)
    return gaussian_epsilon(low, delta)


def _too_unlikely(canaries: int, guesses: int, right: int, mu: float, level: float) -> bool:
    """Whether mu-GDP training gives so many right guesses with a probability below level."""
    # The paper's recursion from `right` down to 0: bounds on the masses of right (hit) and wrong (miss) guesses.
    share = level * guesses / canaries
    hit, miss = share * right / guesses, share * (guesses - right) / guesses
    for index in range(right - 1, -1, -1):
        grown = max(miss, float(ndtr(ndtri(hit) - mu)))
        hit += index / (guesses - index) * (grown - miss)
        miss = grown
    return hit + miss > guesses / canaries
