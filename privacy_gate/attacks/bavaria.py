"""LiRA for few references: each row's variance is shrunk towards that of all rows by empirical Bayes."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, gammaln, polygamma

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.moments import Moments
from privacy_gate.errors import EvidenceError

MOST_SHAPE = 5_000.0
"""Shape of a prior so narrow that all rows share one variance."""

LEAST_SHARE = 1e-5
"""Smallest row variance, as a share of the median variance; its logarithm enters the fit, so it must not be 0."""


def log_predictive(phi: Floats, side: Moments, pool: Bools) -> Floats:
    """Log density of phi (N,) given one side's models, nats: BaVarIA (arXiv 2603.11799).

    Student's t with 2 a_n degrees of freedom about the models' mean, scale^2 = b_n / a_n (1 + 1/n),
    a_n = a_0 + (n - 1)/2, b_n = b_0 + squares/2. The inverse gamma prior of the variance, (a_0, b_0), is fitted over
    audited rows. The prior of the mean is flat: a fitted one lowered the true positive rate with few references, since
    the means of rows vary far more than the models do on one row.
    """
    shape, rate = fit_prior(side.squares[pool], side.count[pool])
    shape_n, rate_n = shape + (side.count - 1) / 2, rate + side.squares / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = rate_n / shape_n * (1 + 1 / side.count)
        return log_student(phi - side.mean, 2 * shape_n, scale)


def log_student(deviation: Floats, freedom: Floats, scale: Floats) -> Floats:
    """Log density of Student's t with the square of its scale as `scale`, nats; shapes broadcast."""
    shape = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - np.log(freedom * np.pi * scale) / 2
    return np.asarray(shape - (freedom + 1) / 2 * np.log1p(deviation**2 / (freedom * scale)))


def fit_prior(squares: Floats, count: Floats) -> tuple[float, float]:
    """Shape and rate of the inverse gamma prior of the rows' variances.

    squares, count (N,): sum of squared deviations from the row's mean, and number of models in it. From the moments of
    log variances: Smyth 2004, "Linear models and empirical Bayes methods". Raises EvidenceError if no row has two
    models.
    """
    useful = count >= 2
    if not useful.any():
        raise EvidenceError("no audited row has two models on the same side: use more references")
    half = (count[useful] - 1) / 2
    variance = squares[useful] / (2 * half)
    floor = max(LEAST_SHARE * float(np.median(variance)), np.finfo(np.float64).tiny)
    # E[log s^2] = log sigma^2 + digamma(f/2) - log(f/2): subtracting the last two leaves the log of the true variance.
    logarithm = np.log(np.maximum(variance, floor)) - digamma(half) + np.log(half)
    # polygamma(1, f/2) is the variance from estimation alone; the rest is how much the true variances differ.
    excess = float(np.var(logarithm)) - float(polygamma(1, half).mean())
    if excess <= float(polygamma(1, MOST_SHAPE)):
        shape = MOST_SHAPE
    else:
        shape = float(brentq(lambda guess: float(polygamma(1, guess)) - excess, 1e-3, MOST_SHAPE))
    typical = np.exp(logarithm.mean() + digamma(shape) - np.log(shape))
    return shape, float(shape * typical)
