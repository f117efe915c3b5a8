"""How often a model is right."""

import numpy as np

from privacy_gate.arrays import Bools
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.intervals.fewest import fewest
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status, not_measured
from privacy_gate.verdict.metric import SHARE, Metric, measured

HOLDOUT_ACCURACY = Metric(
    "holdout_accuracy",
    title="accuracy on held-out examples",
    unit="share",
    range=SHARE,
    worse="lower",
    resolves="Holdout examples: with 400 the interval is about 10 points wide, with 10,000 about 2.",
    means="How often the model is right about people it was not trained on.",
    remedy="Train longer, on more data, or with a better backbone, and check that the limit can be reached.",
)
MEMBER_ACCURACY = Metric(
    "member_accuracy",
    title="accuracy on members",
    unit="share",
    range=SHARE,
    worse="lower",
    resolves="Members: with 400 the interval is about 10 points wide.",
    means="How often the model is right about the people it was trained on.",
    remedy="Check that the candidate and its audit table belong together, then train longer.",
)
METRICS = (
    HOLDOUT_ACCURACY,
    MEMBER_ACCURACY,
)


def accuracy(correct: Bools, confidence: float, metric: Metric, subject: str = "") -> Measurement:
    """Share of rows (N,) on which the model is right, with its Clopper-Pearson interval.

    Wilson's interval is narrower, but its coverage is too low near 1, and accuracies are often near 1.
    """
    rows = len(correct)
    if rows == 0:
        return not_measured(metric.name, "needs n >= 1 rows, found 0", subject)
    right = int(np.count_nonzero(correct))
    low, high = clopper_pearson(right, rows, confidence)
    ends, samples = (low, high), f"{rows:,} rows"
    return measured(metric, right / rows, ends, confidence, "Clopper-Pearson", samples, subject=subject)


def needed_rows(limit: Limit, confidence: float, most: int) -> int | None:
    """Rows below which even the best case misses the limit: a model always right, or for `max` one never right.

    None if even `most` rows are too few.
    >>> needed_rows(Limit(min=0.9), 0.95, most=500), needed_rows(Limit(min=0.9), 0.95, most=30)
    (36, None)
    """

    def meets(rows: int) -> bool:
        # All right for a `min`, all wrong for a `max`: no table of this size is further on the good side.
        best = np.full(rows, limit.min is not None)
        return judged_status(accuracy(best, confidence, HOLDOUT_ACCURACY), limit) is Status.MET

    return fewest(meets, most)
