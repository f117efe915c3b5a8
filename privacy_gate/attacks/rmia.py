"""Attacks on the ratio of the candidate's probability to its expected value: RMIA, BASE, InfoRMIA.

On one candidate all online ones rank rows by nearly the same ratio; they differ in scale, and so in
thresholds that are fixed beforehand.
"""

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.evidence import MembershipEvidence, log_probability
from privacy_gate.attacks.moments import row_blocks
from privacy_gate.attacks.ties import share_below

OFFLINE_SHARE = 0.3
"""RMIA's `a`: how p of models without a row stands for p of models with it."""


def rmia_online(evidence: MembershipEvidence, *, gamma: float = 1.0, a: float = OFFLINE_SHARE) -> Floats:
    """Share of the population whose ratio the row's beats by gamma, (N,): Zarifzadeh et al. 2024
    (arXiv 2312.03262).

    Ties are broken by the ratio itself: gamma moves thresholds, never the order. `a`, as offline,
    only serves the population's own ratios. NaN in population rows.
    """
    pool, scores = evidence.pool, np.full(evidence.target.shape, np.nan)
    population = log_ratio_offline(evidence, a)[evidence.population]
    scores[pool] = share_below(log_ratio_online(evidence)[pool] - np.log(gamma), population)
    return scores


def rmia_offline(evidence: MembershipEvidence, *, gamma: float = 1.0, a: float = OFFLINE_SHARE) -> Floats:
    """As `rmia_online`, from models trained without the row alone; scores population rows too.

    a: p of models with the row is taken to be a times p of models without it, plus 1 - a; 0 <= a <= 1.
    """
    ratio = log_ratio_offline(evidence, a)
    return share_below(ratio - np.log(gamma), ratio[evidence.population])


def base(evidence: MembershipEvidence) -> Floats:
    """log p - log of its mean over the references, (N,) nats: BASE (arXiv 2505.24089), RMIA at gamma 1.

    NaN in population rows: their mean lacks the models trained on them.
    """
    mean = _log_mean_probability(evidence.reference, np.ones(evidence.included.shape, dtype=bool))
    return np.where(evidence.pool, log_probability(evidence.target) - mean, np.nan)


def informia(evidence: MembershipEvidence, *, a: float = OFFLINE_SHARE) -> Floats:
    """Log ratio minus the population's mean log ratio, (N,) nats: InfoRMIA (2026). No gamma, no ties.

    NaN in population rows.
    """
    population = log_ratio_offline(evidence, a)[evidence.population]
    return np.where(evidence.pool, log_ratio_online(evidence) - population.mean(), np.nan)


def log_ratio_online(evidence: MembershipEvidence) -> Floats:
    """log p_t(x) - log p(x), (N,) nats; p(x) is half the mean over models with x, half over those without.

    Equal halves whatever share of the references was trained on x. NaN in population rows.
    """
    inside, outside = (
        _log_mean_probability(evidence.reference, side) for side in (evidence.included, ~evidence.included)
    )
    with np.errstate(invalid="ignore"):  # NaN in population rows
        return np.asarray(log_probability(evidence.target) - np.logaddexp(inside, outside) + np.log(2))


def log_ratio_offline(evidence: MembershipEvidence, a: float) -> Floats:
    """log p_t(x) - log p(x), (N,) nats; p(x) = ((1 + a) mean over models without x + 1 - a) / 2."""
    outside = _log_mean_probability(evidence.reference, ~evidence.included)
    return np.asarray(log_probability(evidence.target) - log_expected_offline(outside, a))


def log_mean_exp(logs: Floats, chosen: Bools) -> Floats:
    """log of the mean of exp(logs) over the chosen models, (M, N) -> (N,); NaN if none is chosen.

    In logarithms throughout: a model that memorised its rows gives others probabilities of exp(-900), which no float
    holds.
    """
    count = np.count_nonzero(chosen, axis=0)
    kept = np.where(chosen, logs, -np.inf)
    top = np.where(count > 0, kept.max(axis=0, initial=-np.inf), 0.0)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(kept - top).sum(axis=0))
    return np.where(count > 0, top + total - np.log(np.maximum(count, 1)), np.nan)


def log_expected_offline(outside: Floats, a: float) -> Floats:
    """log of ((1 + a) p + 1 - a) / 2, nats, for `outside` = log p of models without the row; 0 <= a <= 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp(np.log1p(a) + outside, np.log(1 - a)) - np.log(2))


def _log_mean_probability(phi: Floats, chosen: Bools) -> Floats:
    """log of the mean of p_y over the chosen models, (M, N) -> (N,) nats; NaN if none is chosen."""
    mean = np.full(phi.shape[1], np.nan)
    for rows in row_blocks(*phi.shape):
        mean[rows] = log_mean_exp(log_probability(phi[:, rows]), chosen[:, rows])
    return mean
