"""The reports' own words: what metrics and checks are called, and how figures are written.

Figures are written so that rounding never contradicts a judgement: the ends of an interval are rounded
outward, and with as many digits as it takes to stand on their side of the limit.
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
    "This report is evidence for, or against, resistance to the attacks listed, under the stated attacker model and "
    "sample. It says nothing of other attacks and settles no question of law."
)

STATUS = {
    Status.MET: "limit met",
    Status.VIOLATED: "limit violated",
    Status.NOT_MEASURED: "not measured",
    Status.WAIVED: "violated, waived",
}


_EXACT = Context(prec=60)

_MOST_PLACES = 40
"""Decimals of the longest figure; limits of a size that people write need half as many to be told apart."""


def metric(name: str) -> Metric:
    """The metric's record; a metric without one goes by its own name, with spaces.

    >>> metric("tpr_at_0.01_fpr").title
    'members identified at a false positive rate of 1 %'
    """
    return find(name) or Metric(plain(name), plain(name).replace("_", " "), "index", ANY, "neither", "", "", "")


def check_title(name: str) -> str:
    """What the check is called; one without a title, or of another version, goes by its name."""
    known = CHECKS.get(name)
    return known.title if known and known.title else capital(plain(name).replace("_", " "))


def capital(text: str) -> str:
    """The text with a capital first letter, the rest as it is.

    >>> capital("area under the ROC curve")
    'Area under the ROC curve'
    """
    return text[:1].upper() + text[1:]


def plain(text: object) -> str:
    """Text from strangers on one line: no line breaks, control characters or changes of direction.

    >>> plain("a\\nb\\u202ec")
    'a b\\ufffdc'
    """
    return one_line(text)


def percent(rate: float) -> str:
    """A share as written by people, exactly.

    >>> percent(0.001), percent(0.05)
    ('0.1 %', '5 %')
    """
    return f"{number(Decimal(repr(rate)).scaleb(2))} %"


def moment(text: str) -> str:
    """A time as the report records it, for people; what is no time as it stands.

    >>> moment("2026-11-23T09:41:27+00:00")
    '2026-11-23 09:41:27 UTC'
    """
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return plain(text)
    if when.tzinfo is None:
        return f"{when:%Y-%m-%d %H:%M:%S}"
    return f"{when.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def level(confidence: float | None) -> str:
    """A level of confidence, for instance "95 %"."""
    return percent(confidence) if confidence is not None else ""


def number(value: float | Decimal) -> str:
    """A number without trailing zeros, with thousands separated and a true minus.

    >>> number(1280.0), number(-0.5)
    ('1,280', '−0.5')
    """
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if exact and not -9 < exact.adjusted() < 15:
        return f"{exact:.3e}".replace("-", "−")
    text = f"{exact:,f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


@dataclass(frozen=True)
class Shown:
    """A measured figure as text: value, low, high, each with its unit."""

    value: str
    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.value} [{self.low}, {self.high}]"


def shown(measurement: Measurement, limit: Limit | None = None) -> Shown | None:
    """The figure as text, its ends rounded outward; None where there is none.

    >>> figure = Measurement(metric="tpr_at_0.01_fpr", value=0.031, low=0.0221, high=0.0436, confidence=0.95)
    >>> str(shown(figure))
    '3.1 % [2.2 %, 4.4 %]'
    """
    if measurement.value is None or measurement.low is None or measurement.high is None:
        return None
    in_percent = metric(measurement.metric).percent
    ends = [Decimal(repr(end)).scaleb(2 * in_percent) for end in (measurement.low, measurement.value, measurement.high)]
    unit = " %" if in_percent else ""
    if max(abs(end) for end in ends) >= 10**9:
        low, value, high = (f"{float(end):.6e}{unit}".replace("-", "−") for end in ends)
        return Shown(value, low, high)
    low, value, high = (text + unit for text in _round(ends, in_percent, limit))
    return Shown(value, low, high)


def _round(ends: list[Decimal], in_percent: bool, limit: Limit | None) -> list[str]:
    """low, value, high with equally many decimals, two digits of their distance at least."""
    low, value, high = ends
    width = float(high - low)
    least = 1 if in_percent else 3
    places = least if width <= 0 else min(max(least, 1 - math.floor(math.log10(width))), 6)
    while True:
        step = Decimal(1).scaleb(-places)
        rounded = [low.quantize(step, ROUND_FLOOR, _EXACT), value.quantize(step, ROUND_HALF_EVEN, _EXACT)]
        rounded.append(high.quantize(step, ROUND_CEILING, _EXACT))
        if places >= _MOST_PLACES or _same_side(ends, rounded, in_percent, limit):
            return [f"{end if end else abs(end):,.{places}f}".replace("-", "−") for end in rounded]
        places += 1


def _same_side(ends: list[Decimal], rounded: list[Decimal], in_percent: bool, limit: Limit | None) -> bool:
    """Whether the rounded interval stands to the limit as the interval does."""
    if limit is None:
        return True
    if limit.max is not None:
        bound = Decimal(repr(limit.max)).scaleb(2 * in_percent)
        return (rounded[2] <= bound) == (ends[2] <= bound)
    bound = Decimal(repr(limit.min)).scaleb(2 * in_percent)
    return (rounded[0] >= bound) == (ends[0] >= bound)


def bound(finding: Finding) -> str:
    """The limit as text, for instance "≤ 5 %", or "≥ champion's 81.2 % − 5 %"."""
    limit, name = finding.limit, finding.measurement.metric
    edge = limit.max if limit.max is not None else limit.min
    if edge is None:
        return "none"
    sign = "≤" if limit.max is not None else "≥"
    if not name.endswith(SUFFIX):
        return f"{sign} {amount(name, edge)}"
    champion = finding.measurement.champion
    figure = "champion" if champion is None else f"champion's {amount(name, float(f'{champion:.3g}'))}"
    return f"{sign} {figure} {'+' if limit.max is not None else '−'} {amount(name, abs(edge))}"


def amount(name: str, value: float) -> str:
    """A bare value of the metric as text."""
    return percent(value) if metric(name).percent else number(value)
