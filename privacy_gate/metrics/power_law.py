"""The power law in the examples per class S: log10(tpr - fpr) = intercept + slope log10(S), and what it advises.

arXiv 2402.06674 finds it for fine-tuned heads; its simplified model gives
tpr = Phi(Phi^-1(fpr) + d / sqrt(S)) for each row, so a slope of -1/2 for large S.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from privacy_gate.documents import Record
from privacy_gate.errors import EvidenceError
from privacy_gate.verdict.judgement import Measurement, Remedy
from privacy_gate.verdict.metric import ANY, Metric

SLOPE = Metric(
    "slope",
    title="slope of the power law at a false positive rate of {fpr}",
    unit="slope",
    range=ANY,
    worse="higher",
    resolves="A measurable leak at 3 sizes of the classes, each with at least {rows} audited examples.",
    means="How fast the share of members identified falls as classes grow; the more negative, the faster.",
    remedy="Do not rely on more data alone: use fewer epochs, stronger regularisation, or DP-SGD.",
)
FAMILIES = (SLOPE,)
"""Metrics of the fitted law, at a false positive rate."""

SLOPES = {0.1: -0.509, 0.01: -0.554, 0.001: -0.628}
"""The paper's slope at each fpr: ViT-B head, LiRA."""

FARTHEST = 10.0
"""Beyond this factor from the largest S measured the law is extrapolated further than a fit can carry."""


class Law(Record):
    """A fitted law at one false positive rate, with the ends of its slope's interval.

    shots, excess  the points: examples per class, and tpr - fpr there
    fit            "measured here", or whose slope it is
    """

    fpr: float
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    r_squared: float
    shots: tuple[float, ...]
    excess: tuple[float, ...]
    fit: str

    def tpr(self, shots: float) -> float:
        """The rate the law gives for so many examples per class."""
        return float(self.fpr + 10 ** (self.intercept + self.slope * math.log10(shots)))


@dataclass(frozen=True)
class Point:
    """tpr at one fpr, measured with `shots` examples per class."""

    shots: float
    measurement: Measurement


def fit(points: Sequence[Point], fpr: float, confidence: float) -> Law:
    """The law through the points, each weighted by the precision of its own interval.

    Points whose interval reaches down to fpr carry no logarithm and are left out; raises
    EvidenceError where fewer than three are left. The slope's interval propagates the points' errors,
    widened by the scatter about the line where that is larger (Birge's ratio).
    """
    usable = [(point.shots, *_log_excess(point.measurement, fpr)) for point in points if _leaks(point, fpr)]
    if len(usable) < 3:
        raise EvidenceError(f"a power law needs a leak above fpr {fpr:g} at >= 3 sizes, found {len(usable)}")
    shots, y, deviation = (np.array(column) for column in zip(*usable, strict=True))
    x, weight = np.log10(shots), 1 / deviation**2
    mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = float((weight * (x - mean_x) ** 2).sum())
    slope = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread)
    left = float((weight * (y - mean_y - slope * (x - mean_x)) ** 2).sum())
    total = float((weight * (y - mean_y) ** 2).sum())
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(1.0, left / (len(x) - 2)) / spread)
    return Law(
        fpr=fpr,
        slope=slope,
        slope_low=slope - reach,
        slope_high=slope + reach,
        intercept=float(mean_y - slope * mean_x),
        r_squared=1 - left / total if total > 0 else 1.0,
        shots=tuple(shots.tolist()),
        excess=tuple((10**y).tolist()),
        fit="measured here",
    )


def published(tpr: float, fpr: float, shots: float) -> Law:
    """The law with the paper's slope through one measured point."""
    slope, excess = SLOPES[fpr], max(tpr - fpr, 1e-9)
    return Law(
        fpr=fpr,
        slope=slope,
        slope_low=slope,
        slope_high=slope,
        intercept=math.log10(excess) - slope * math.log10(shots),
        r_squared=1.0,
        shots=(shots,),
        excess=(excess,),
        fit="that of arXiv 2402.06674",
    )


def shots_needed(law: Law, limit: float, slope: float | None = None) -> float | None:
    """Examples per class at which the law's tpr falls to `limit`; with another slope, turned about its largest S.

    None where the limit is not above fpr, the level of guessing, or where the law does not fall.

    >>> round(shots_needed(published(tpr=0.21, fpr=0.01, shots=10), limit=0.11))
    35
    """
    slope = law.slope if slope is None else slope
    if limit <= law.fpr or slope >= 0:
        return None
    largest = max(law.shots)
    exponent = math.log10((limit - law.fpr) / (law.tpr(largest) - law.fpr)) / slope
    return float(largest * 10**exponent)


def remedy(law: Law, limit: float) -> Remedy:
    """What the law advises a team whose limit on tpr at its fpr is violated."""
    measured = f"[{law.slope_low:.3f}, {law.slope_high:.3f}], R^2 {law.r_squared:.2f} " if len(law.shots) > 1 else ""
    basis = f"power law in the examples per class at fpr {law.fpr:g}: slope {law.slope:.3f} {measured}({law.fit})"
    needed, largest = shots_needed(law, limit), max(law.shots)
    if needed is None:
        return Remedy(
            action=f"choose a limit above {law.fpr:g}: that is what guessing reaches at this false positive rate",
            basis=basis,
        )
    ends = [shots_needed(law, limit, slope) for slope in (law.slope_low, law.slope_high)]
    known = sorted(end for end in ends if end is not None)
    band = f" (between {_round_up(known[0]):,} and {_round_up(known[1]):,})" if measured and len(known) == 2 else ""
    if needed / largest > FARTHEST:
        return Remedy(
            action=f"train on many more examples per class (the law says about {_round_up(needed):,}{band}), for fewer "
            "epochs, or with stronger regularisation",
            basis=f"{basis}; {needed / largest:.0f} times more examples than measured is beyond what the law was "
            "fitted for: an order of magnitude, not a number",
        )
    return Remedy(
        action=f"train on about {_round_up(needed):,} examples per class{band} instead of {largest:g}", basis=basis
    )


def _leaks(point: Point, fpr: float) -> bool:
    return point.measurement.low is not None and point.measurement.low > fpr


def _log_excess(measurement: Measurement, fpr: float) -> tuple[float, float]:
    """log10(tpr - fpr) and its standard deviation, from the interval's ends on that scale."""
    if measurement.low is None or measurement.high is None or measurement.value is None or not measurement.confidence:
        raise EvidenceError(f"{measurement.metric} was not measured, expected a figure")
    low, value, high = (math.log10(end - fpr) for end in (measurement.low, measurement.value, measurement.high))
    return value, max((high - low) / (2 * float(ndtri((1 + measurement.confidence) / 2))), 1e-9)


def _round_up(value: float) -> int:
    """Up to two significant digits.

    >>> _round_up(1234.5)
    1300
    """
    step = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return math.ceil(value / step) * step
