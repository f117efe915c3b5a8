"""LiRA for few references: each row's variance is shrunk towards all rows' by empirical Bayes."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, gammaln, polygamma

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.moments import Moments
from privacy_gate.errors import EvidenceError

MOST_SHAPE = 5_000.0
"""Shape of a prior so narrow that all rows have one variance."""

LEAST_SHARE = 1e-5
"""Smallest row variance, as a share of the median one: its logarithm enters the fit."""


def log_predictive(phi: Floats, side: Moments, pool: Bools) -> Floats:
    """Log density of phi (N,) given one side's models, nats: BaVarIA (arXiv 2603.11799).

    Student t with 2 a_n degrees of freedom about the models' mean, scale^2 = b_n / a_n (1 + 1/n),
    a_n = a_0 + (n - 1)/2, b_n = b_0 + squares/2; the prior of the variance, inverse gamma (a_0, b_0),
    is fitted over audited rows. The prior of the mean is flat: fitted, it cost power with few
    references, since rows differ far more in their mean than models do on a row.
    """
    shape, rate = fit_prior(side.squares[pool], side.count[pool])
    shape_n, rate_n = shape + (side.count - 1) / 2, rate + side.squares / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = rate_n / shape_n * (1 + 1 / side.count)
        return log_student(phi - side.mean, 2 * shape_n, scale)


def log_student(deviation: Floats, freedom: Floats, scale: Floats) -> Floats:
    """Log density of Student's t with squared scale, nats; shapes broadcast."""
    shape = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - np.log(freedom * np.pi * scale) / 2
    return np.asarray(shape - (freedom + 1) / 2 * np.log1p(deviation**2 / (freedom * scale)))


def fit_prior(squares: Floats, count: Floats) -> tuple[float, float]:
    """Shape and rate of the inverse gamma prior of rows' variances.

    squares, count (N,): squared deviations from the row's mean, and models they are of. By the
    moments of log variances: Smyth 2004, "Linear models and empirical Bayes methods".
    Raises EvidenceError where no row has two models.
    """
    useful = count >= 2
    if not useful.any():
        raise EvidenceError("no audited row has two models on the same side: use more references")
    half = (count[useful] - 1) / 2
    variance = squares[useful] / (2 * half)
    floor = max(LEAST_SHARE * float(np.median(variance)), np.finfo(np.float64).tiny)
    logarithm = np.log(np.maximum(variance, floor)) - digamma(half) + np.log(half)
    excess = float(np.var(logarithm)) - float(polygamma(1, half).mean())
    if excess <= float(polygamma(1, MOST_SHAPE)):
        shape = MOST_SHAPE
    else:
        shape = float(brentq(lambda guess: float(polygamma(1, guess)) - excess, 1e-3, MOST_SHAPE))
    typical = np.exp(logarithm.mean() + digamma(shape) - np.log(shape))
    return shape, float(shape * typical)
