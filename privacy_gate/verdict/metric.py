"""What is known of a metric: one record beside each function that measures, read by checks, lint, reports and docs."""

from dataclasses import dataclass, replace
from typing import Literal

from privacy_gate.verdict.judgement import Limit, Measurement

Unit = Literal["share", "difference", "ratio", "correlation", "epsilon", "p-value", "index", "slope"]
"""Shares are shown in percent, differences of two shares in percentage points, the others as plain numbers."""

Worse = Literal["lower", "higher", "neither"]
"""Which way a metric goes if the model is worse for people."""

Range = tuple[float | None, float | None]
"""The least and the most value that a figure can have; None: no bound."""

SHARE: Range = (0.0, 1.0)
DIFFERENCE: Range = (-1.0, 1.0)
"""Of two shares."""
POSITIVE: Range = (0.0, None)
ANY: Range = (None, None)

SUFFIX = "_vs_champion"
"""Ends the names of differences from the champion."""

INHERITED = "inherited_"
"""Begins the names of metrics of a model that the candidate builds on."""


@dataclass(frozen=True)
class Metric:
    """All that is known of a metric before it is measured.

    title     in words, begins in lower case
    range     of every figure and of both ends of its interval
    worse     which direction is worse for people
    resolves  the rows, models or clients that a useful figure needs
    means     one sentence on what it says about people
    remedy    one sentence on what to do if a limit on it is violated
    chance    what guessing reaches; None if guessing has no such level
    """

    name: str
    title: str
    unit: Unit
    range: Range
    worse: Worse
    resolves: str
    means: str
    remedy: str
    chance: float | None = None

    @property
    def percent(self) -> bool:
        """Whether figures are shown times 100, in percent or in points."""
        return self.unit in ("share", "difference")

    @property
    def signed(self) -> bool:
        """Whether a figure may be below 0."""
        return self.range[0] is None or self.range[0] < 0

    @property
    def around_one(self) -> bool:
        """Whether sensible limits lie in -1 to 1, so that 5 in their place means 5 %."""
        return None not in self.range or self.unit in ("difference", "ratio")

    def always_meets(self, limit: Limit) -> bool:
        """Whether no figure can violate the limit.

        >>> accuracy = Metric("accuracy", "accuracy", "share", SHARE, "lower", "", "", "")
        >>> accuracy.always_meets(Limit(min=0)), accuracy.always_meets(Limit(min=0.1))
        (True, False)
        """
        least, most = self.range
        if limit.max is not None:
            return most is not None and limit.max >= most
        return least is not None and limit.min is not None and limit.min <= least


def versus_champion(own: Metric) -> Metric:
    """The metric of the candidate's figure minus the champion's."""
    least, most = own.range
    reach = None if least is None or most is None else most - least
    return replace(
        own,
        name=own.name + SUFFIX,
        title=f"{own.title}, minus the champion's",
        unit="difference" if own.percent else own.unit,
        range=(None if reach is None else -reach, reach),
        chance=0.0,
        means=f"How far the candidate's figure lies above the champion's. {own.means}",
    )


def inherited(own: Metric) -> Metric:
    """The same metric, measured on a model that the candidate builds on, which explains and gates nothing."""
    return replace(
        own,
        name=INHERITED + own.name,
        title=f"{own.title}, in a model that the candidate builds on",
        means=f"How much of it was there before the candidate was trained. {own.means}",
        remedy="Start from another backbone if most of the difference is inherited.",
    )


def measured(
    metric: Metric,
    value: float,
    ends: tuple[float, float],
    confidence: float,
    method: str,
    samples: str,
    *,
    subject: str = "",
    champion: float | None = None,
) -> Measurement:
    """A figure with its interval: the ends are kept within the metric's range, and always include the value.

    >>> auc = Metric("auc", "area under the ROC curve", "index", SHARE, "higher", "", "", "")
    >>> found = measured(auc, 0.5, (-0.1, 0.4), 0.95, "by hand", "2 rows")
    >>> found.low, found.high
    (0.0, 0.5)
    """
    low, high = float(min(ends[0], value)), float(max(ends[1], value))
    least, most = metric.range
    low = low if least is None else min(max(least, low), float(value))
    high = high if most is None else max(min(most, high), float(value))
    return Measurement(
        metric=metric.name,
        subject=subject,
        value=float(value),
        low=low,
        high=high,
        confidence=confidence,
        method=method,
        samples=samples,
        champion=champion,
    )
