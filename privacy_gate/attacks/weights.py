"""Attacks on weights as functions of evidence: each statistic alone, and as what LiRA judges over references.

A statistic is one number for each row and model. Heads have four (see heads.py); of networks the gradient span is kept
when they are trained. All of them are blind to `split`: they see the pool, not who is in it.
"""

from collections.abc import Callable

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.bavaria import log_predictive
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.heads import (
    gradient_span,
    influence,
    inverse_hessian,
    path_probabilities,
    with_ones,
)
from privacy_gate.attacks.moments import moments
from privacy_gate.attacks.release import probabilities
from privacy_gate.errors import EvidenceError

Statistic = Callable[[MembershipEvidence, bool], Floats]
"""(1 + M, N): the candidate's row first, then those of the references, which stay away if they are not asked for."""


def span_statistic(evidence: MembershipEvidence, references: bool) -> Floats:
    """The whitened gradient span of heads, or the stored one of networks."""
    if evidence.span is not None:
        kept = [] if evidence.reference_span is None or not references else [evidence.reference_span]
        return np.concatenate([evidence.span[None], *kept]).astype(np.float64)
    x, heads = _rows_and_heads(evidence, references)
    return gradient_span(x.astype(np.float32), evidence.label, heads, _path(evidence, x, heads), evidence.training)


def plain_span_statistic(evidence: MembershipEvidence, references: bool) -> Floats:
    """The gradient span of heads in plain coordinates: GLiR (arXiv 2306.07273) for whole trainings."""
    x, heads = _rows_and_heads(evidence, references)
    path = _path(evidence, x, heads)
    return gradient_span(x.astype(np.float32), evidence.label, heads, path, evidence.training, whitened=False)


def influence_statistic(evidence: MembershipEvidence, references: bool) -> Floats:
    """See heads.influence."""
    x, heads = _rows_and_heads(evidence, references)
    return influence(x, evidence.label, heads)


def hessian_statistic(evidence: MembershipEvidence, references: bool) -> Floats:
    """See heads.inverse_hessian."""
    x, heads = _rows_and_heads(evidence, references)
    return inverse_hessian(x, evidence.label, heads, _path(evidence, x, heads))


def alone(statistic: Statistic) -> Callable[[MembershipEvidence], Floats]:
    """The attack that accuses by the candidate's statistic itself: no reference is used, (N,)."""

    def score(evidence: MembershipEvidence) -> Floats:
        return np.asarray(statistic_of(statistic, evidence, references=False)[0])

    return score


def over_references(statistic: Statistic) -> Callable[[MembershipEvidence], Floats]:
    """The attack that asks whether the statistic is more like that of models trained on the row: LiRA with BaVarIA's
    variances, (N,) nats; NaN in population rows."""

    def score(evidence: MembershipEvidence) -> Floats:
        made = statistic_of(statistic, evidence, references=True)
        return _log_ratio(made[0], made[1:], evidence)

    return score


def with_confidence(statistic: Statistic) -> Callable[[MembershipEvidence], Floats]:
    """LiRA on the statistic and phi together, (N,) nats: the statistic's log ratio plus that of what phi adds to it.

    What phi adds is phi less its regression on the statistic, both as deviations from the row's mean on its side, with
    one slope for all rows. Under the Gaussian model with that slope this is the joint log ratio.
    """

    def score(evidence: MembershipEvidence) -> Floats:
        made = statistic_of(statistic, evidence, references=True)
        slope = _slope(made[1:], evidence)
        target = evidence.target - slope * made[0]
        reference = evidence.reference - slope * made[1:]
        return _log_ratio(made[0], made[1:], evidence) + _log_ratio(target, reference, evidence)

    return score


def _slope(statistic: Floats, evidence: MembershipEvidence) -> float:
    """Of phi on the statistic (M, N), over the deviations of audited rows from their means on either side."""
    cross = size = 0.0
    pool = evidence.pool
    for side in (evidence.included[:, pool], ~evidence.included[:, pool]):
        one, other = (
            np.where(side, values - (values * side).sum(axis=0) / np.maximum(side.sum(axis=0), 1), 0.0)
            for values in (statistic[:, pool], evidence.reference[:, pool].astype(np.float64))
        )
        cross, size = cross + float((one * other).sum()), size + float((one**2).sum())
    return cross / size if size > 0 else 0.0


def _log_ratio(target: Floats, reference: Floats, evidence: MembershipEvidence) -> Floats:
    """log t(target; in) - log t(target; out), (N,) nats, by BaVarIA; reference (M, N)."""
    inside, outside = (moments(reference, side) for side in (evidence.included, ~evidence.included))
    ratio = log_predictive(target, inside, evidence.pool) - log_predictive(target, outside, evidence.pool)
    return np.where(evidence.pool, ratio, np.nan)


def statistic_of(statistic: Statistic, evidence: MembershipEvidence, *, references: bool) -> Floats:
    """The statistic, made once for each evidence: attacks share it."""
    name = f"{getattr(statistic, '__name__', '')} {references}"
    if name not in evidence.memo:
        evidence.memo[name] = np.asarray(statistic(evidence, references), dtype=np.float64)
    return evidence.memo[name]


def _rows_and_heads(evidence: MembershipEvidence, references: bool) -> tuple[Floats, Floats]:
    """The attacker's rows with ones, (N, D + 1) float64, and the heads, the candidate's first."""
    if evidence.features is None or evidence.head is None:
        raise EvidenceError("the attack needs the candidate's head and the backbone's features, found none")
    heads = [evidence.head[None]]
    if references:
        if evidence.reference_heads is None:
            raise EvidenceError("the attack needs the references' heads, found none")
        heads.append(evidence.reference_heads)
    return with_ones(evidence.features), np.concatenate(heads).astype(np.float64)


def _path(evidence: MembershipEvidence, x: Floats, heads: Floats) -> Floats:
    """Probabilities during training, (N, C): on the way to the references' mean head, else to the candidate's own.

    A random start hides the way: the mean head of references has none left of it.
    """
    mean = heads[1:].mean(axis=0) if len(heads) > 1 else heads[0]
    logits = x @ mean.T
    return probabilities(logits) if evidence.training.random_start and len(heads) == 1 else path_probabilities(logits)
