"""What a federation's rounds tell of who was trained on, and where."""

import numpy as np

from privacy_gate.arrays import Floats, Ints
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.intervals.bootstrap import measured
from privacy_gate.metrics.membership import tpr_at_fpr
from privacy_gate.verdict.judgement import Measurement

FPR = 0.01


def trajectory_tpr(member: Floats, holdout: Floats, confidence: float, subject: str = "") -> Measurement:
    """Share of members (m,) above the score that 1 % of holdout (n,) exceeds; each row's z of its own client."""
    return tpr_at_fpr(member, holdout, FPR, confidence, subject).model_copy(update={"metric": "trajectory_tpr"})


def source_inference_advantage(guess: Ints, client: Ints, confidence: float, subject: str = "") -> Measurement:
    """How much oftener a member's client is guessed from the log than by always naming the largest, (m,) each.

    0 where the log tells nothing. Interval: Clopper-Pearson's of the share guessed right, the largest client's share
    taken as given: it is known of these members.
    """
    if guess.shape != client.shape or guess.ndim != 1 or not len(client):
        raise EvidenceError(f"guesses have shape {guess.shape}, clients {client.shape}, expected one (m,), m >= 1")
    right = int((guess == client).sum())
    largest = float(np.bincount(client).max() / len(client))
    low, high = clopper_pearson(right, len(client), confidence)
    found = measured(
        "source_inference_advantage",
        right / len(client) - largest,
        (low - largest, high - largest),
        confidence,
        "Clopper-Pearson",
        f"{len(client):,} members of {len(np.unique(client)):,} clients, the largest with {largest:.0%}",
    )
    return found.model_copy(update={"subject": subject})
