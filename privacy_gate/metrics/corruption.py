"""How much accuracy a model keeps on images with common corruptions."""

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
"""With fewer rows the bootstrap interval is not reliable."""


def corruption_ratio(
    right: Bools, spoiled: Mapping[str, Bools], label: Ints, confidence: float, rng: np.random.Generator
) -> Measurement:
    """Mean accuracy under the corruptions, divided by the accuracy on the same images without corruption.

    right (R,): whether the model is right on each clean image; spoiled: the same (R,) under each corruption;
    label (R,). Interval: percentile bootstrap over rows; a resampled row keeps its answers under all corruptions. Not
    measured if the model is not significantly better than always predicting the largest class: then a ratio says
    nothing about robustness.
    """
    rows = len(right)
    if not spoiled or any(answers.shape != right.shape for answers in spoiled.values()) or label.shape != right.shape:
        raise EvidenceError(f"expected answers {right.shape} under at least one corruption, and as many labels")
    if rows < FEWEST:
        return not_measured("corruption_ratio", f"needs n >= {FEWEST} holdout images, found {rows}")
    largest = float(np.bincount(label).max() / rows)
    if clopper_pearson(int(right.sum()), rows, confidence)[0] <= largest:
        reason = f"accuracy is {right.mean():.0%}, not significantly above {largest:.0%} from naming the largest class"
        return not_measured("corruption_ratio", reason)
    corrupted = np.mean([answers.astype(np.float64) for answers in spoiled.values()], axis=0)
    # A multinomial row of counts is one bootstrap sample; a product with it resamples all corruptions together.
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    clean = weights @ right
    drawn = (weights @ corrupted)[clean > 0] / clean[clean > 0]
    return measured(
        CORRUPTION_RATIO,
        corrupted.sum() / right.sum(),
        percentile(drawn, confidence),
        confidence,
        "percentile bootstrap over rows",
        f"{rows:,} rows, {len(spoiled)} corruptions",
    )
