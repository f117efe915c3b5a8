"""The loss of each row over the epochs of the candidate's training, if the dossier has it."""

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.errors import EvidenceError


def loss_trace(evidence: MembershipEvidence) -> Floats:
    """Interquartile range of the row's losses over the epochs, (N,) nats: Pollock et al. 2024 (arXiv 2411.05743).

    Training drives members' losses down from the common starting level, so theirs have a larger range. Raises
    EvidenceError without a trace.
    """
    if evidence.trace is None:
        raise EvidenceError("the loss-trace attack needs a trace, found none")
    upper, lower = np.quantile(evidence.trace.astype(np.float64), [0.75, 0.25], axis=1)
    return np.asarray(upper - lower)
