"""Attacks on labels alone: one query a row, or one for each of a few changed images."""

import numpy as np

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.errors import EvidenceError

PRIOR = 0.5
"""Jeffreys' prior of a rate: half a success and half a failure are added."""


def gap(evidence: MembershipEvidence) -> Floats:
    """1 if the label is right, else 0, (N,): members are misclassified less often. Yeom et al. 2018 (arXiv 1709.01604).

    Ties are broken by nothing: a label has one bit.
    """
    return _right(evidence).astype(np.float64)


def label_lira(evidence: MembershipEvidence) -> Floats:
    """Log of how likely this label is from models trained on the row, over models trained without it, (N,) nats.

    One query a row: rates of right labels over the references of either side, with Jeffreys' prior. NaN in population
    rows.
    """
    if evidence.reference_right is None:
        raise EvidenceError("the attack needs the references' labels, found none")
    right, told = evidence.reference_right, _right(evidence)
    rates = []
    for side in (evidence.included, ~evidence.included):
        hits, models = (right & side).sum(axis=0), side.sum(axis=0)
        rates.append(log_likelihood(told, hits, models))
    return np.where(evidence.pool, rates[0] - rates[1], np.nan)


def log_likelihood(told: Bools, hits: Ints, models: Ints) -> Floats:
    """Log of how likely the label is as right or wrong as it is, nats, if `hits` of so many models are right."""
    rate = (hits + PRIOR) / (models + 2 * PRIOR)
    return np.log(np.where(told, rate, 1 - rate))


def consistency(evidence: MembershipEvidence) -> Floats:
    """Share of a row's changed images whose label is right, beyond what references trained without it reach, (N,).

    Choquette-Choo et al. 2021 (arXiv 2007.14321): members stay right under changes that training did not show. Nine
    queries a row. In deviations of the references that were trained without the row, shrunk towards all rows'.
    """
    if evidence.steady is None or evidence.reference_steady is None:
        raise EvidenceError("the attack needs labels of changed images, found none")
    out = ~evidence.included
    models = np.maximum(out.sum(axis=0), 1)
    mean = (evidence.reference_steady * out).sum(axis=0) / models
    squares = ((evidence.reference_steady - mean) ** 2 * out).sum(axis=0)
    pooled = float(squares[evidence.pool].sum() / max(models[evidence.pool].sum(), 1))
    deviation = np.sqrt((squares + 4 * pooled) / (models + 4))
    return np.asarray((evidence.steady - mean) / np.maximum(deviation, 1e-9))


def _right(evidence: MembershipEvidence) -> Bools:
    if evidence.right is None:
        raise EvidenceError("the attack needs the candidate's labels, found none")
    return evidence.right
