"""Intervals from simulated tables: seeded, so that the same evidence gives the same interval."""

import numpy as np

from privacy_gate.arrays import Floats

DRAWS = 1000
"""Simulated tables for each interval, or for each point of a grid."""


def percentile(drawn: Floats, confidence: float) -> tuple[float, float]:
    """The two-sided quantiles of simulated figures (DRAWS,)."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
