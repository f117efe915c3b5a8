"""Attacks on every model in turn, all the others its references: each exact, in one pass over the models.

For LiRA see leave_one_out.py. BaVarIA fits its prior anew for each target. RMIA's mean probabilities of the other
models are sums of those before and of those after the target: no subtraction, so nothing cancels.
"""

from collections.abc import Callable

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.bavaria import log_predictive
from privacy_gate.attacks.evidence import MembershipEvidence, log_probability
from privacy_gate.attacks.labels import log_likelihood
from privacy_gate.attacks.leave_one_out import all_models, lira_every_model
from privacy_gate.attacks.moments import moments, row_blocks
from privacy_gate.attacks.rmia import OFFLINE_SHARE, log_expected_offline
from privacy_gate.attacks.ties import share_below
from privacy_gate.attacks.weights import span_statistic, statistic_of
from privacy_gate.errors import EvidenceError


def bavaria_every_model(phi: Floats, included: Bools) -> Floats:
    """`lira_online` with variance bavaria on each model as target, the other M - 1 as references: (M, N) nats.

    phi, included (M, N) of audited rows. NaN where a row then lacks a side.
    """
    inside, outside = moments(phi, included), moments(phi, ~included)
    every = np.ones(phi.shape[1], dtype=bool)
    scores = np.empty(phi.shape)
    for target in range(len(phi)):
        own, chosen = phi[target, None].astype(np.float64), included[target, None]
        sides = (inside.without(own, chosen).row(0), outside.without(own, ~chosen).row(0))
        with_it, without_it = (log_predictive(own[0], side, every) for side in sides)
        scores[target] = with_it - without_it
    return scores


def rmia_every_model(phi: Floats, included: Bools, population: Floats, *, a: float = OFFLINE_SHARE) -> Floats:
    """`rmia_online` at gamma 1 on each model as target: (M, N).

    phi, included (M, N) of audited rows; population (M, Z): phi of rows no model was trained on.
    NaN where a row lacks a side once the target is left out.
    """
    calibration = log_probability(population) - log_expected_offline(_log_mean_of_others(population), a)
    scores = np.empty(phi.shape)
    for rows in row_blocks(*phi.shape):
        block, chosen = phi[:, rows], included[:, rows]
        inside, outside = _log_mean_of_others(block, chosen), _log_mean_of_others(block, ~chosen)
        with np.errstate(invalid="ignore"):  # NaN where a row lacks a side
            scores[:, rows] = log_probability(block) - np.logaddexp(inside, outside) + np.log(2)
    for target, ratio in enumerate(scores):
        known = np.isfinite(ratio)
        ratio[known] = share_below(ratio[known], calibration[target])
    return scores


def _log_mean_of_others(phi: Floats, chosen: Bools | None = None) -> Floats:
    """log of the mean of p_y over the chosen models but the row's own, (M, N) nats; NaN if there is none.

    Sums of the models before and of those after the target, in logarithms: nothing cancels and nothing underflows.
    """
    chosen = np.ones(phi.shape, dtype=bool) if chosen is None else chosen
    share = np.where(chosen, log_probability(phi), -np.inf)
    total = np.full(phi.shape, -np.inf)
    total[1:] = np.logaddexp.accumulate(share[:-1], axis=0)
    total[:-1] = np.logaddexp(total[:-1], np.logaddexp.accumulate(share[:0:-1], axis=0)[::-1])
    count = np.count_nonzero(chosen, axis=0) - chosen
    return np.where(count > 0, total - np.log(np.maximum(count, 1)), np.nan)


def _of_span(evidence: MembershipEvidence) -> Floats:
    """`span_lira` on every model: the statistic is made once, each model's references are all the others."""
    made = statistic_of(span_statistic, evidence, references=True)
    included, pool = np.concatenate([evidence.member[None], evidence.included]), evidence.pool
    return bavaria_every_model(made[:, pool], included[:, pool])


def _of_label(evidence: MembershipEvidence) -> Floats:
    """`label_lira` on every model: rates of right labels among the other models of either side, Jeffreys' prior."""
    if evidence.right is None or evidence.reference_right is None:
        raise EvidenceError("the attack needs the labels of the candidate and its references, found none")
    pool = evidence.pool
    right = np.concatenate([evidence.right[None], evidence.reference_right])[:, pool]
    included = np.concatenate([evidence.member[None], evidence.included])[:, pool]
    logs = []
    for side in (included, ~included):
        hits, models = (right & side).sum(axis=0) - (right & side), side.sum(axis=0) - side
        logs.append(log_likelihood(right, hits, models))
    return np.asarray(logs[0] - logs[1])


def _of_lira(evidence: MembershipEvidence) -> Floats:
    return lira_every_model(*all_models(evidence))


def _of_bavaria(evidence: MembershipEvidence) -> Floats:
    return bavaria_every_model(*all_models(evidence))


def _of_rmia(evidence: MembershipEvidence) -> Floats:
    outside = evidence.population
    population = np.concatenate([evidence.target[None, outside], evidence.reference[:, outside]])
    return rmia_every_model(*all_models(evidence), population)


EVERY_MODEL: dict[str, Callable[[MembershipEvidence], Floats]] = {
    "lira": _of_lira,
    "bavaria": _of_bavaria,
    "rmia": _of_rmia,
    "span_lira": _of_span,
    "label_lira": _of_label,
}
"""Scores (M + 1, audited rows) of every model as target, the candidate first, by the attack's name in ATTACKS."""
