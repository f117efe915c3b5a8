"""How much better than chance an attacker identifies the row that an update was made from."""

from collections.abc import Mapping

import numpy as np

from privacy_gate.arrays import Bools
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.verdict.judgement import Measurement
from privacy_gate.verdict.metric import Metric, measured

INVERSION_ADVANTAGE = Metric(
    "inversion_advantage",
    title="examples identified from their client's update, minus guessing",
    unit="difference",
    range=(-0.5, 1.0),  # guessing between two candidates is right half of the time
    worse="higher",
    resolves="At least 50 updates, and holdout examples of the same class as decoys.",
    means="How well the server recognises which person's example a client just trained on.",
    remedy="Use secure aggregation, larger batches, or noise that the clients add.",
    chance=0.0,
)
METRICS = (INVERSION_ADVANTAGE,)

FEWEST_TARGETS = 50


def inversion_advantage(hits: Mapping[str, Bools], candidates: int, confidence: float) -> Measurement:
    """Identification rate of the best attack, minus 1 / candidates: 0 if nothing leaks.

    hits  by attack: whether it identified each target (T,) among the candidates. Each target belongs to a separately
          drawn update, so hits are independent even if the rows of one batch depend on each other

    The subject names the attack. Interval: Clopper-Pearson's for each attack at a confidence that holds for all of them
    (Bonferroni); the largest of the low ends and the largest of the high ends.
    """
    shapes = {identified.shape for identified in hits.values()}
    if candidates < 2 or len(shapes) != 1 or min(map(len, shapes)) != 1 or not next(iter(shapes))[0]:
        raise EvidenceError(
            f"hits have shapes {sorted(shapes)} with {candidates} candidates, expected one shape (T,) with T >= 1 and "
            "at least 2 candidates"
        )
    level = 1 - (1 - confidence) / len(hits)
    ends = np.array([clopper_pearson(int(one.sum()), len(one), level) for one in hits.values()])
    rate = {name: float(one.mean()) for name, one in hits.items()}
    best = max(rate, key=lambda name: rate[name])
    low, high = ends.max(axis=0) - 1 / candidates
    targets = next(iter(hits.values()))
    return measured(
        INVERSION_ADVANTAGE,
        rate[best] - 1 / candidates,
        (float(low), float(high)),
        confidence,
        "Clopper-Pearson, Bonferroni over attacks",
        f"{len(targets):,} updates, one of {candidates} rows each",
        subject=best,
    )
