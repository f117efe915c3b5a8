"""Attacks on the loss: by itself, relative to a population or to models trained without the row, and over epochs."""

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence, log_probability
from privacy_gate.attacks.moments import moments
from privacy_gate.attacks.ties import break_ties, share_below
from privacy_gate.errors import EvidenceError


def loss(evidence: MembershipEvidence) -> Floats:
    """log p_y, (N,) nats: Yeom et al. 2018 (arXiv 1709.01604).

    Computed from phi, so that a probability that rounds to 1 neither ties nor overflows.
    """
    return log_probability(evidence.target)


def attack_p(evidence: MembershipEvidence) -> Floats:
    """Share of the population with a larger loss, (N,): Ye et al. 2022 (arXiv 2111.09679), Attack P.

    On one model it ranks rows like the loss, which also breaks ties. It adds a scale: one minus it is a p-value.
    """
    phi = evidence.target.astype(np.float64)
    return share_below(phi, phi[evidence.population])


def attack_r(evidence: MembershipEvidence) -> Floats:
    """Share of the models trained without the row that have a larger loss on it, (N,): Ye et al. 2022, Attack R.

    Few models give few distinct shares: ties are broken by phi minus its mean over those models, nats.
    """
    phi = evidence.target.astype(np.float64)
    outside = moments(evidence.reference, ~evidence.included)
    beaten = np.count_nonzero((evidence.reference < phi) & ~evidence.included, axis=0)
    # Two different shares a/n and b/m differ by at least 1/(n m), so a tie-break below that keeps their order.
    return break_ties(beaten / outside.count, phi - outside.mean, 1 / (len(evidence.reference) + 1) ** 2)


def loss_trace(evidence: MembershipEvidence) -> Floats:
    """Interquartile range of the row's losses over the epochs, (N,) nats: Pollock et al. 2024 (arXiv 2411.05743).

    Training drives members' losses down from the common starting level, so theirs have a larger range. Raises
    EvidenceError without a trace.
    """
    if evidence.trace is None:
        raise EvidenceError("the loss-trace attack needs a trace, found none")
    upper, lower = np.quantile(evidence.trace.astype(np.float64), [0.75, 0.25], axis=1)
    return np.asarray(upper - lower)
