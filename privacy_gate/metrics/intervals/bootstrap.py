"""Intervals from simulated tables: seeded, so that the same evidence gives the same interval."""

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.verdict.judgement import Measurement

DRAWS = 1000
"""Simulated tables behind each interval, or each point of a grid."""


def percentile(drawn: Floats, confidence: float) -> tuple[float, float]:
    """The two-sided quantiles of simulated figures (DRAWS,)."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def measured(
    metric: str,
    value: float,
    ends: tuple[float, float],
    confidence: float,
    method: str,
    samples: str,
    champion: float | None = None,
) -> Measurement:
    """The measurement; its interval is widened to the value where chance left it outside."""
    return Measurement(
        metric=metric,
        value=float(value),
        low=float(min(ends[0], value)),
        high=float(max(ends[1], value)),
        confidence=confidence,
        method=method,
        samples=samples,
        champion=champion,
    )
