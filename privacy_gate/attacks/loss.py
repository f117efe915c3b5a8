"""Attacks on the loss: alone, against a population, against models trained without the row, and over the epochs."""

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence, log_probability
from privacy_gate.attacks.moments import moments
from privacy_gate.attacks.ties import break_ties, share_below
from privacy_gate.errors import EvidenceError


def loss(evidence: MembershipEvidence) -> Floats:
    """log p_y, (N,) nats: Yeom et al. 2018 (arXiv 1709.01604).

    From phi, so that a probability that rounds to 1 neither ties nor overflows.
    """
    return log_probability(evidence.target)


def attack_p(evidence: MembershipEvidence) -> Floats:
    """Share of the population with a larger loss, (N,): Ye et al. 2022 (arXiv 2111.09679), Attack P.

    On one model it ranks as the loss does, which also breaks ties; what it adds is the scale: one
    minus it is a p-value.
    """
    phi = evidence.target.astype(np.float64)
    return share_below(phi, phi[evidence.population])


def attack_r(evidence: MembershipEvidence) -> Floats:
    """Share of the models trained without the row that have a larger loss, (N,): Ye et al. 2022, Attack R.

    Few models give few levels: ties are broken by phi minus its mean over those models, nats.
    """
    phi = evidence.target.astype(np.float64)
    outside = moments(evidence.reference, ~evidence.included)
    beaten = np.count_nonzero((evidence.reference < phi) & ~evidence.included, axis=0)
    # Shares a/n and b/m differ by at least 1/(n m).
    return break_ties(beaten / outside.count, phi - outside.mean, 1 / (len(evidence.reference) + 1) ** 2)


def loss_trace(evidence: MembershipEvidence) -> Floats:
    """Interquartile range of the row's losses over the epochs, (N,) nats: Pollock et al. 2024 (arXiv 2411.05743).

    Training drives members' losses down from where everyone's began, so theirs spread further.
    Raises EvidenceError without a trace.
    """
    if evidence.trace is None:
        raise EvidenceError("the loss-trace attack needs a trace, found none")
    upper, lower = np.quantile(evidence.trace.astype(np.float64), [0.75, 0.25], axis=1)
    return np.asarray(upper - lower)
