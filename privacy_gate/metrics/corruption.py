"""How much of a model's accuracy common corruptions of its images leave."""

from collections.abc import Mapping

import numpy as np

from privacy_gate.arrays import Bools, Ints
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.intervals.bootstrap import DRAWS, percentile
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import POSITIVE, Metric, measured

CORRUPTION_RATIO = Metric(
    "corruption_ratio",
    title="accuracy on corrupted images, relative to clean ones",
    unit="ratio",
    range=POSITIVE,
    worse="lower",
    resolves="At least 100 holdout images.",
    means="How much of its accuracy the model keeps for people whose images are noisy, blurred or foggy.",
    remedy="Train with noise, blur and weather among the augmentations.",
)
METRICS = (CORRUPTION_RATIO,)

FEWEST = 100
"""Rows below which the interval's resampling is worth nothing."""


def corruption_ratio(
    right: Bools, spoiled: Mapping[str, Bools], label: Ints, confidence: float, rng: np.random.Generator
) -> Measurement:
    """Mean accuracy under the corruptions, over accuracy on the same images as they are.

    right (R,), each of spoiled (R,): whether the model is right without and with each corruption; label (R,). Interval:
    percentiles over resampled rows, all corruptions of a row together. Not measured where the model is not surely
    better than naming the largest class: nothing is left to lose.
    """
    rows = len(right)
    if not spoiled or any(each.shape != right.shape for each in spoiled.values()) or label.shape != right.shape:
        raise EvidenceError(f"expected answers {right.shape} under one corruption at least, and as many labels")
    if rows < FEWEST:
        return not_measured("corruption_ratio", f"needs n >= {FEWEST} holdout images, found {rows}")
    largest = float(np.bincount(label).max() / rows)
    if clopper_pearson(int(right.sum()), rows, confidence)[0] <= largest:
        reason = f"right on {right.mean():.0%} of the images, and naming the largest class would be on {largest:.0%}"
        return not_measured("corruption_ratio", reason)
    left = np.mean([each.astype(np.float64) for each in spoiled.values()], axis=0)
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    kept = weights @ right
    drawn = (weights @ left)[kept > 0] / kept[kept > 0]
    return measured(
        CORRUPTION_RATIO,
        left.sum() / right.sum(),
        percentile(drawn, confidence),
        confidence,
        "percentile bootstrap over rows",
        f"{rows:,} rows, {len(spoiled)} corruptions",
    )
