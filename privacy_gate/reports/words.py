"""Titles of metrics and checks, and figures as text, for every format of the report.

Rounding never contradicts a judgement: the ends of an interval are rounded outward, with as many digits as are
needed to show on which side of the limit they lie.
"""

import datetime
import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from privacy_gate.checks import CHECKS
from privacy_gate.errors import one_line
from privacy_gate.metrics.catalogue import find
from privacy_gate.verdict.judgement import Finding, Limit, Measurement, Status
from privacy_gate.verdict.metric import ANY, SUFFIX, Metric

SCOPE = (
    "This report is evidence for or against resistance to the attacks that it lists, for the attacker and the data "
    "that it describes. It says nothing about other attacks and answers no legal question."
)

STATUS = {
    Status.MET: "limit met",
    Status.VIOLATED: "limit violated",
    Status.NOT_MEASURED: "not measured",
    Status.WAIVED: "violated, waived",
}


_EXACT = Context(prec=60)

_MOST_PLACES = 40
"""Largest number of decimals; limits as people write them need at most half as many."""


def metric(name: str) -> Metric:
    """The metric's record; a metric without one goes by its own name, with spaces.

    >>> metric("tpr_at_0.01_fpr").title
    'members identified at a false positive rate of 1 %'
    """
    return find(name) or Metric(plain(name), plain(name).replace("_", " "), "index", ANY, "neither", "", "", "")


def check_title(name: str) -> str:
    """The title of the check; its name if it has none, or if this version does not know it."""
    known = CHECKS.get(name)
    return known.title if known and known.title else capital(plain(name).replace("_", " "))


def capital(text: str) -> str:
    """The text with a capital first letter, the rest as it is.

    >>> capital("area under the ROC curve")
    'Area under the ROC curve'
    """
    return text[:1].upper() + text[1:]


def plain(text: object) -> str:
    """Untrusted text on one line, without line breaks, control characters or changes of text direction.

    >>> plain("a\\nb\\u202ec")
    'a b\\ufffdc'
    """
    return one_line(text)


def percent(rate: float) -> str:
    """A share in percent, exactly.

    >>> percent(0.001), percent(0.05)
    ('0.1 %', '5 %')
    """
    return f"{hundredths(rate)} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, exactly.

    >>> points(0.05), points(-0.01)
    ('5 points', '−1 point')
    """
    text = hundredths(difference)
    return f"{text} point" if text.lstrip("−") == "1" else f"{text} points"


def hundredths(share: float) -> str:
    """The share times 100 without a unit, exactly: binary floats would turn 7 % into 7.000000000000001 %.

    >>> hundredths(0.07)
    '7'
    """
    return number(Decimal(repr(share)).scaleb(2))


def moment(text: str) -> str:
    """A recorded time, for people; text that is not a time is returned unchanged.

    >>> moment("2026-11-23T09:41:27+00:00")
    '2026-11-23 09:41:27 UTC'
    """
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return plain(text)
    if time.tzinfo is None:
        return f"{time:%Y-%m-%d %H:%M:%S}"
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def level(confidence: float | None) -> str:
    """A level of confidence, for instance "95 %"."""
    return percent(confidence) if confidence is not None else ""


def number(value: float | Decimal) -> str:
    """A number without trailing zeros, with separated thousands and a typographic minus.

    >>> number(1280.0), number(-0.5)
    ('1,280', '−0.5')
    """
    # repr is the shortest decimal that reads back as this float: .05 stays .05 and gets no 55 digits.
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    # Long rows of zeros are hard to count, so very small and very large numbers get an exponent.
    if exact and not -9 < exact.adjusted() < 15:
        return f"{exact:.3e}".replace("-", "−")
    text = f"{exact:,f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


@dataclass(frozen=True)
class Shown:
    """A measured figure as text: value, low and high. Percent stands at all three, points only at the value."""

    value: str
    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.value} [{self.low}, {self.high}]"


def shown(measurement: Measurement, limit: Limit | None = None) -> Shown | None:
    """The figure as text, the ends of its interval rounded outward; None if it was not measured.

    >>> figure = Measurement(metric="tpr_at_0.01_fpr", value=0.031, low=0.0221, high=0.0436, confidence=0.95)
    >>> str(shown(figure))
    '3.1 % [2.2 %, 4.4 %]'
    >>> drop = Measurement(metric="byzantine_drop", value=0.031, low=0.0221, high=0.0436, confidence=0.95)
    >>> str(shown(drop))
    '3.1 points [2.2, 4.4]'
    """
    if measurement.value is None or measurement.low is None or measurement.high is None:
        return None
    in_percent = metric(measurement.metric).percent
    # scaleb(2) multiplies by 100 without an error of rounding.
    ends = [Decimal(repr(end)).scaleb(2 * in_percent) for end in (measurement.low, measurement.value, measurement.high)]
    # Figures this large only come from a fault, and would not fit a cell of a table in full.
    if max(abs(end) for end in ends) >= 10**9:
        low, value, high = (f"{float(end):.6e}".replace("-", "−") for end in ends)
    else:
        low, value, high = _round(ends, in_percent, limit)
    if in_points(measurement.metric):
        return Shown(f"{value} points", low, high)
    unit = " %" if in_percent else ""
    return Shown(value + unit, low + unit, high + unit)


def _round(ends: list[Decimal], in_percent: bool, limit: Limit | None) -> list[str]:
    """low, value, high with the same number of decimals: at least two significant digits of the interval's width."""
    low, value, high = ends
    width = float(high - low)
    least = 1 if in_percent else 3
    places = least if width <= 0 else min(max(least, 1 - math.floor(math.log10(width))), 6)
    # More decimals until the rounded interval meets or violates the limit as the exact one does.
    while True:
        step = Decimal(1).scaleb(-places)
        rounded = [low.quantize(step, ROUND_FLOOR, _EXACT), value.quantize(step, ROUND_HALF_EVEN, _EXACT)]
        rounded.append(high.quantize(step, ROUND_CEILING, _EXACT))
        if places >= _MOST_PLACES or _same_side(ends, rounded, in_percent, limit):
            # abs turns -0 into 0, which would otherwise be written with a minus.
            return [f"{end if end else abs(end):,.{places}f}".replace("-", "−") for end in rounded]
        places += 1


def _same_side(ends: list[Decimal], rounded: list[Decimal], in_percent: bool, limit: Limit | None) -> bool:
    """Whether the rounded interval meets the limit exactly if the interval itself does."""
    if limit is None:
        return True
    # The same comparison as in `judged_status`, once with the rounded end and once with the exact one.
    if limit.max is not None:
        bound = Decimal(repr(limit.max)).scaleb(2 * in_percent)
        return (rounded[2] <= bound) == (ends[2] <= bound)
    bound = Decimal(repr(limit.min)).scaleb(2 * in_percent)
    return (rounded[0] >= bound) == (ends[0] >= bound)


def bound(finding: Finding) -> str:
    """The limit as text, for instance "≤ 5 %", or "≥ champion's 81.2 % − 5 points"."""
    limit, name = finding.limit, finding.measurement.metric
    edge = limit.max if limit.max is not None else limit.min
    if edge is None:
        return "none"
    sign = "≤" if limit.max is not None else "≥"
    # A limit relative to the champion is stored as a bound on the difference: max is a rise, min is minus a drop.
    if not name.endswith(SUFFIX):
        return f"{sign} {amount(name, edge)}"
    champion = finding.measurement.champion
    # The champion's own figure is a share, although the metric is a difference.
    own = name.removesuffix(SUFFIX)
    figure = "champion" if champion is None else f"champion's {amount(own, float(f'{champion:.3g}'))}"
    return f"{sign} {figure} {'+' if limit.max is not None else '−'} {amount(name, abs(edge))}"


def amount(name: str, value: float) -> str:
    """A value of the metric as text, with its unit."""
    if in_points(name):
        return points(value)
    return percent(value) if metric(name).percent else number(value)


def in_points(name: str) -> bool:
    """Whether the metric is a difference of two shares, written in points and not in percent."""
    return metric(name).unit == "difference"
