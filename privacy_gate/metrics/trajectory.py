"""What a federation's rounds reveal about who was trained on, and at which client."""

import numpy as np

from privacy_gate.arrays import Floats, Ints
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.membership import tpr_at_fpr
from privacy_gate.metrics.rates import needed_holdout
from privacy_gate.verdict.judgement import Measurement
from privacy_gate.verdict.metric import DIFFERENCE, SHARE, Metric, measured

FPR = 0.01

_ROWS = f"At least {needed_holdout(FPR):,} holdout examples, and 5 logged rounds of every client that holds members."

TRAJECTORY_TPR = Metric(
    "trajectory_tpr",
    title="members identified from their client's updates, at a false positive rate of 1 %",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves=_ROWS,
    means="The share of people in the training data whom a reader of the round log identifies.",
    remedy="Use secure aggregation or client noise, and do not keep the round log longer than needed.",
    chance=FPR,
)
SOURCE_INFERENCE_ADVANTAGE = Metric(
    "source_inference_advantage",
    title="members whose client is named correctly, minus always naming the largest client",
    unit="difference",
    range=DIFFERENCE,
    worse="higher",
    resolves="Members of every client, and 5 logged rounds of each.",
    means="How well a reader of the round log tells which client a person's data came from.",
    remedy="Use secure aggregation or client noise, and do not keep the round log longer than needed.",
    chance=0.0,
)
CLIENT_MIA_GAP = Metric(
    "client_mia_gap",
    title="largest gap between clients in members identified from updates",
    unit="difference",
    range=SHARE,
    worse="higher",
    resolves=_ROWS,
    means="How much more a reader of the round log learns about the members of one client than of another.",
    remedy="Give small or unusual clients more noise, or clip the updates of all.",
)
CLIENT_MIA_GAP_P_VALUE = Metric(
    "client_mia_gap_p_value",
    title="p-value of the gap between clients in members identified from updates",
    unit="p-value",
    range=SHARE,
    worse="lower",
    resolves=_ROWS,
    means="How often sampling noise alone makes a gap this large between clients; a small value means a real gap.",
    remedy="Look at the most exposed client; the remedy for client_mia_gap applies.",
)
METRICS = (
    TRAJECTORY_TPR,
    SOURCE_INFERENCE_ADVANTAGE,
    CLIENT_MIA_GAP,
    CLIENT_MIA_GAP_P_VALUE,
)


def trajectory_tpr(member: Floats, holdout: Floats, confidence: float, subject: str = "") -> Measurement:
    """Share of members (m,) above the score that 1 % of holdout (n,) exceeds; scores are z within each row's client."""
    return tpr_at_fpr(member, holdout, FPR, confidence, subject).model_copy(update={"metric": TRAJECTORY_TPR.name})


def source_inference_advantage(guess: Ints, client: Ints, confidence: float, subject: str = "") -> Measurement:
    """How much more often a member's client is guessed correctly from the log than by naming the largest, (m,) each.

    0 if the log reveals nothing. Interval: Clopper-Pearson's of the share of correct guesses; the largest client's
    share is treated as fixed, since it is known exactly for these members.
    """
    if guess.shape != client.shape or guess.ndim != 1 or not len(client):
        raise EvidenceError(f"guesses have shape {guess.shape}, clients {client.shape}, expected equal (m,), m >= 1")
    # Guessing the largest client is the best strategy without the log; its share is the baseline.
    right = int((guess == client).sum())
    largest = float(np.bincount(client).max() / len(client))
    low, high = clopper_pearson(right, len(client), confidence)
    return measured(
        SOURCE_INFERENCE_ADVANTAGE,
        right / len(client) - largest,
        (low - largest, high - largest),
        confidence,
        "Clopper-Pearson",
        f"{len(client):,} members of {len(np.unique(client)):,} clients, the largest with {largest:.0%}",
        subject=subject,
    )
