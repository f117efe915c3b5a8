"""How much a recipe leaks on this data: each model is the target in turn, with all others as its references.

This is the protocol of arXiv 2402.06674. Its scores are not independent: scores of one model share that model, and
scores of one row share that row. The intervals here account for both.
"""

import math

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import binom

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.leave_one_out import lira_every_model
from privacy_gate.attacks.moments import Moments, block_moments, row_blocks
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.clustered import METHOD, clustered_ends
from privacy_gate.metrics.rates import at_fpr, needed_holdout
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import SHARE, Metric, measured

_REMEDY = "Change the recipe: more examples per class, fewer epochs, stronger regularisation, or DP-SGD."

RECIPE_TPR = Metric(
    "recipe_tpr",
    title="members identified at a false positive rate of {fpr}, over all models of the recipe",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves="At least {rows} audited examples and 3 models.",
    means="The share of members that an attacker identifies, on average over models of this recipe.",
    remedy=_REMEDY,
)
MEDIAN_TPR = Metric(
    "median_tpr",
    title="members identified at a false positive rate of {fpr}, in the median model of the recipe",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves="At least {rows} audited examples outside each model's training set.",
    means="The share of members that an attacker identifies in a typical model of this recipe.",
    remedy=_REMEDY,
)
CALIBRATED_TPR = Metric(
    "calibrated_tpr",
    title="members identified at a false positive rate of {fpr}, with a threshold for each example",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves="Every example in at least 3 models and out of at least 3.",
    means="The share of members identified by an attacker who sets a separate threshold for each person.",
    remedy=_REMEDY,
)
FAMILIES = (RECIPE_TPR, MEDIAN_TPR, CALIBRATED_TPR)
"""Metrics of the recipe, at a false positive rate."""

NEIGHBOURHOOD = 0.5
"""The slope of the ROC at an fpr is the difference quotient between (1 - this) and (1 + this) times that fpr."""


def recipe_tpr(phi: Floats, included: Bools, fpr: float, confidence: float, subject: str = "lira") -> Measurement:
    """True positive rate at `fpr` over the scores of all models and rows together, as the paper reports it.

    phi, included (M, N): logit-scaled confidences (nats) and training sets of the audited rows. The interval is
    Wilson's. Its number of trials is chosen to match the variance of the linearised estimate, threshold included,
    under two-way clustering by models and rows (Cameron, Gelbach & Miller 2011); its quantile is Student's t with
    M - 1 degrees of freedom. Not measured if the scores of rows outside the training sets cannot resolve fpr.
    """
    metric = at_fpr(RECIPE_TPR, fpr)
    try:
        scores = lira_every_model(phi, included)
    except EvidenceError as error:
        return not_measured(metric.name, str(error), subject)
    if not np.isfinite(scores).all():
        return not_measured(metric.name, "some row is in, or out of, too few models to leave one out", subject)
    return clustered_tpr(scores, included, fpr, confidence, subject)


def clustered_tpr(scores: Floats, included: Bools, fpr: float, confidence: float, subject: str) -> Measurement:
    """The pooled rate of scores (M, N), larger = more likely a member, with its two-way clustered interval."""
    metric, (models, rows) = at_fpr(RECIPE_TPR, fpr), scores.shape
    inside, outside = int(included.sum()), int((~included).sum())
    if rows < needed_holdout(fpr) or models < 3:
        return not_measured(metric.name, f"needs n >= {needed_holdout(fpr):,} audited rows and 3 models", subject)
    threshold, below, above = (
        _threshold(scores[~included], rate) for rate in (fpr, fpr * (1 - NEIGHBOURHOOD), fpr * (1 + NEIGHBOURHOOD))
    )
    accused = scores > threshold
    value = float(accused[included].mean())
    rise = float((scores[included] > above).mean() - (scores[included] > below).mean())
    slope = rise / (2 * NEIGHBOURHOOD * fpr)
    # The influence of each score on the estimate. An error in the threshold moves the estimate along the ROC, hence
    # the slope for scores of non-members.
    weight = np.where(included, (accused - value) / inside, -slope * (accused - fpr) / outside)
    ends, samples = clustered_ends(value, weight, confidence), _samples(scores)
    return measured(metric, value, ends, confidence, METHOD, samples, subject=subject)


def median_tpr(scores: Floats, included: Bools, fpr: float, confidence: float, subject: str) -> Measurement:
    """The median over models of the true positive rate at `fpr`, each model with its own threshold.

    scores (M, N), larger = more likely a member, included (M, N). arXiv 2402.06674 reports medians over repeated runs;
    these are over models, and `samples` names the smallest and largest rate. Interval: order statistics, with models
    as a sample. Not measured if some model has too few rows outside its training set to resolve fpr.
    """
    metric = at_fpr(MEDIAN_TPR, fpr)
    fewest = int((~included).sum(axis=1).min())
    if fewest < needed_holdout(fpr):
        reason = f"needs n >= {needed_holdout(fpr):,} rows outside each model's training set, found {fewest:,}"
        return not_measured(metric.name, reason, subject)
    models = len(scores)
    # The number of models below the median is binomial(models, 1/2): `rank` is the lower order statistic of the
    # distribution-free interval, and by symmetry the rank from above is the same.
    rank = int(binom.ppf((1 - confidence) / 2, models, 0.5))
    if binom.cdf(rank - 1, models, 0.5) > (1 - confidence) / 2 or rank < 1:
        return not_measured(metric.name, f"needs more than {models} models for an interval of the median", subject)
    rates = np.sort(
        [
            float((row[inside] > _threshold(row[~inside], fpr)).mean())
            for row, inside in zip(scores, included, strict=True)
        ]
    )
    value, ends = float(np.median(rates)), (float(rates[rank - 1]), float(rates[models - rank]))
    method, samples = (
        "order statistics of the models",
        f"{_samples(scores)}; models from {rates[0]:.3f} to {rates[-1]:.3f}",
    )
    return measured(metric, value, ends, confidence, method, samples, subject=subject)


def calibrated_tpr(phi: Floats, included: Bools, fpr: float, confidence: float, subject: str = "lira") -> Measurement:
    """Mean over rows of the true positive rate of each row at its own threshold (arXiv 2605.25819).

    A row's rate is 1 - Phi((mean_out + sd_out z - mean_in) / sd_in), z = Phi^-1(1 - fpr). Interval: the variance over
    rows plus the jackknife variance over models; Student's t with M - 1 degrees of freedom.
    """
    metric = at_fpr(CALIBRATED_TPR, fpr)
    if min(np.count_nonzero(included, axis=0).min(), np.count_nonzero(~included, axis=0).min()) < 3:
        return not_measured(metric.name, "needs every row in >= 3 models and out of >= 3 models", subject)
    models = len(phi)
    rates = row_rates(phi, included, fpr)
    value = float(rates.mean())
    without = _rates_without_each(phi, included, fpr)
    jackknife = float((models - 1) / models * ((without - without.mean()) ** 2).sum())
    error = math.sqrt(float(rates.var(ddof=1)) / len(rates) + jackknife)
    reach = float(stdtrit(models - 1, (1 + confidence) / 2)) * error
    ends, method = (value - reach, value + reach), "rows and jackknife over models"
    return measured(metric, value, ends, confidence, method, _samples(phi), subject=subject)


def row_rates(phi: Floats, included: Bools, fpr: float) -> Floats:
    """The true positive rate of each row at `fpr` (N,), after Lemma 1 of arXiv 2402.06674.

    The standard deviation of phi is estimated for each row and side; it needs two models on each side.
    """
    return np.concatenate(
        [_rate(*_sides(phi[:, rows], included[:, rows]), fpr) for rows in row_blocks(*phi.shape)], axis=-1
    )


def _rates_without_each(phi: Floats, included: Bools, fpr: float) -> Floats:
    """The mean rate with each model left out in turn, (M,)."""
    total = np.zeros(len(phi))
    for rows in row_blocks(*phi.shape):
        values, inside = phi[:, rows].astype(np.float64), included[:, rows]
        moments_in = block_moments(values, inside).without(values, inside)
        moments_out = block_moments(values, ~inside).without(values, ~inside)
        total += _rate(moments_in, moments_out, fpr).sum(axis=1)
    return np.asarray(total / phi.shape[1])


def _sides(phi: Floats, included: Bools) -> tuple[Moments, Moments]:
    values = phi.astype(np.float64)
    return block_moments(values, included), block_moments(values, ~included)


def _rate(inside: Moments, outside: Moments, fpr: float) -> Floats:
    # 1e-12 keeps the quotient finite if all models agree exactly on a row.
    spread_in = np.sqrt(np.maximum(inside.squares / (inside.count - 1), 1e-12))
    spread_out = np.sqrt(np.maximum(outside.squares / (outside.count - 1), 1e-12))
    return np.asarray(ndtr((inside.mean - outside.mean - spread_out * ndtri(1 - fpr)) / spread_in))


def _threshold(scores: Floats, fpr: float) -> float:
    """The score that at most a share `fpr` of `scores` exceeds."""
    if not len(scores):
        raise EvidenceError("every row is in every training set, expected some rows outside to set the threshold")
    above = math.floor(fpr * len(scores) + 1e-9)  # 1e-9: 0.01 * 300 must not round down to 2
    return float(np.partition(scores, len(scores) - above - 1)[len(scores) - above - 1])


def _samples(phi: Floats) -> str:
    return f"{phi.shape[0]:,} models, {phi.shape[1]:,} rows"
