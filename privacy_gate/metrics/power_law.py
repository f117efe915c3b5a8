"""The power law in the examples per class S, log10(tpr - fpr) = intercept + slope log10(S), and the advice it gives.

arXiv 2402.06674 finds it for fine-tuned heads. Its simplified model gives tpr = Phi(Phi^-1(fpr) + d / sqrt(S)) for each
row, and so a slope of -1/2 for large S.
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
    resolves="A measurable leak at 3 class sizes, each with at least {rows} audited examples.",
    means="How fast the share of members identified falls as classes grow; the more negative, the faster.",
    remedy="Do not rely on more data alone: use fewer epochs, stronger regularisation, or DP-SGD.",
)
FAMILIES = (SLOPE,)
"""Metrics of the fitted law, at a false positive rate."""

SLOPES = {0.1: -0.509, 0.01: -0.554, 0.001: -0.628}
"""The paper's slope at each fpr: ViT-B head, LiRA."""

FARTHEST = 10.0
"""Further than this factor from the largest S measured, the law is not trusted to extrapolate."""


class Law(Record):
    """A fitted law at one false positive rate, with the ends of its slope's interval.

    shots, excess  the points: examples per class, and tpr - fpr at each
    fit            "measured here", or the source of the slope
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
        """The rate that the law predicts for so many examples per class."""
        return float(self.fpr + 10 ** (self.intercept + self.slope * math.log10(shots)))


@dataclass(frozen=True)
class Point:
    """tpr at one fpr, measured with `shots` examples per class."""

    shots: float
    measurement: Measurement


def fit(points: Sequence[Point], fpr: float, confidence: float) -> Law:
    """The law through the points, each weighted by the precision of its own interval.

    A point whose interval reaches down to fpr has no logarithm and is left out. Raises EvidenceError if fewer than
    three are left. The slope's interval propagates the errors of the points, widened by the scatter about the line if
    that is larger (Birge's ratio).
    """
    usable = [(point.shots, *_log_excess(point.measurement, fpr)) for point in points if _leaks(point, fpr)]
    if len(usable) < 3:
        raise EvidenceError(f"a power law needs a leak above fpr {fpr:g} at >= 3 sizes, found {len(usable)}")
    shots, y, deviation = (np.array(column) for column in zip(*usable, strict=True))
    x, weight = np.log10(shots), 1 / deviation**2
    mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
    # Weighted least squares on log-log axes, by its closed form.
    spread = float((weight * (x - mean_x) ** 2).sum())
    slope = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread)
    residual = float((weight * (y - mean_y - slope * (x - mean_x)) ** 2).sum())
    total = float((weight * (y - mean_y) ** 2).sum())
    # Birge's ratio: residual chi-square per degree of freedom, used only if it widens the interval.
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(1.0, residual / (len(x) - 2)) / spread)
    return Law(
        fpr=fpr,
        slope=slope,
        slope_low=slope - reach,
        slope_high=slope + reach,
        intercept=float(mean_y - slope * mean_x),
        r_squared=1 - residual / total if total > 0 else 1.0,
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
    """Examples per class at which the law's tpr falls to `limit`; a given slope turns the law about its largest S.

    None if the limit is not above fpr, the level of guessing, or if the law does not fall.

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
    """The law's advice if a limit on the tpr at its fpr is violated."""
    measured = f"[{law.slope_low:.3f}, {law.slope_high:.3f}], R^2 {law.r_squared:.2f} " if len(law.shots) > 1 else ""
    basis = f"power law in the examples per class at fpr {law.fpr:g}: slope {law.slope:.3f} {measured}({law.fit})"
    needed, largest = shots_needed(law, limit), max(law.shots)
    if needed is None:
        return Remedy(
            action=f"choose a limit above {law.fpr:g}: guessing alone reaches {law.fpr:g} at this false positive rate",
            basis=basis,
        )
    ends = [shots_needed(law, limit, slope) for slope in (law.slope_low, law.slope_high)]
    known = sorted(end for end in ends if end is not None)
    band = f" (between {_round_up(known[0]):,} and {_round_up(known[1]):,})" if measured and len(known) == 2 else ""
    if needed / largest > FARTHEST:
        return Remedy(
            action=f"train on many more examples per class (the law predicts about {_round_up(needed):,}{band}), for "
            "fewer epochs, or with stronger regularisation",
            basis=f"{basis}; {needed / largest:.0f} times more examples than measured is outside the range that the "
            "law was fitted for: read it as an order of magnitude",
        )
    return Remedy(
        action=f"train on about {_round_up(needed):,} examples per class{band} instead of {largest:g}", basis=basis
    )


def _leaks(point: Point, fpr: float) -> bool:
    return point.measurement.low is not None and point.measurement.low > fpr


def _log_excess(measurement: Measurement, fpr: float) -> tuple[float, float]:
    """log10(tpr - fpr) and its standard deviation, derived from the interval's ends on that scale."""
    if measurement.low is None or measurement.high is None or measurement.value is None or not measurement.confidence:
        raise EvidenceError(f"{measurement.metric} was not measured, expected a figure")
    low, value, high = (math.log10(end - fpr) for end in (measurement.low, measurement.value, measurement.high))
    return value, max((high - low) / (2 * float(ndtri((1 + measurement.confidence) / 2))), 1e-9)


def _round_up(value: float) -> int:
    """Rounds up to two significant digits.

    >>> _round_up(1234.5)
    1300
    """
    step = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return math.ceil(value / step) * step
