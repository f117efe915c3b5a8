"""Geometry of the report's charts: exhibits in, SVG paths and ticks out. Lengths are SVG user units."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from privacy_gate.reports.words import amount, hundredths, metric, number, percent, plain
from privacy_gate.verdict.exhibits import Histogram, LawPlot, Roc
from privacy_gate.verdict.judgement import Finding, Limit, Measurement

COLOURS = 8
DASHES = 4
WORDS = 15
"""Distance from a limit to the middle of its label; also the label's height, and a quarter of its width."""
RESOLVED = 10
"""A false positive rate is not resolved if fewer than this many holdout rows are expected above its threshold."""


@dataclass(frozen=True)
class Axis:
    """Data range [low, high] on [start, end] user units; start > end for values that grow upwards, against SVG's y."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of the value; a value beyond the range is placed at its end."""
        value = min(max(value, self.low), self.high)
        low, high = self._scale(self.low), self._scale(self.high)
        return self.start + (self._scale(value) - low) / (high - low) * (self.end - self.start)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: str
    label: str


@dataclass(frozen=True)
class Line:
    """One drawn series: its path, and the numbers of its colour and its dashes."""

    name: str
    path: str
    colour: int
    dash: int


@dataclass(frozen=True)
class Mark:
    """A point with a label, for instance a limit. `above`: the label stands above the point, not below."""

    x: str
    y: str
    label: str
    above: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines between two axes. `resolved`: the position on x below which there are too few data."""

    left: int
    right: int
    top: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    chance: str = ""
    resolved: float = 0.0
    note: str = ""

    @property
    def slope(self) -> float:
        """Angle of the diagonal from the lower left to the upper right, in degrees; negative is upwards."""
        return math.degrees(math.atan2(self.top - self.bottom, self.right - self.left))


@dataclass(frozen=True)
class Bars:
    """A histogram of two groups on a width x height field: members as an area, holdout as an outline."""

    attack: str
    width: int
    height: int
    member: str
    holdout: str
    x_ticks: tuple[Tick, ...]
    top: str


@dataclass(frozen=True)
class Interval:
    """An interval bar on [0, BAR] user units; low, value and high are None if nothing was measured.

    good    start and width of the side that meets the limit
    chance  the value that guessing reaches; None if the metric has none
    """

    limit: str
    good: tuple[str, str]
    chance: str | None
    low: str | None = None
    value: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Scale:
    """The axis that all interval bars of one limit share."""

    low: str
    high: str
    axis: Axis


BAR = 200
PAD = 4


def styled(index: int) -> tuple[int, int]:
    """Colour and dash of series `index`: the first 32 pairs all differ, and neighbours differ in both."""
    # Once the colours repeat, the dashes are shifted by one, so that a colour comes back with another dash.
    return index % COLOURS, (index + index // COLOURS) % DASHES


def roc_chart(curves: Sequence[Roc], holdout: int, findings: Iterable[Finding]) -> Chart:
    """ROC curves on logarithmic axes from 1/holdout to 1, with the chance line and the limits on tpr.

    False positive rates below RESOLVED/holdout have too few rows to be measured: `resolved` marks that rate.
    """
    # The smallest rate that one holdout row can show; the axes need some width for tiny data, too.
    least = 1 / max(holdout, 20)
    x, y = Axis(least, 1, 64, 504, log=True), Axis(least, 1, 424, 16, log=True)
    lines = tuple(Line(plain(roc.attack), _curve(roc, x, y), *styled(i)) for i, roc in enumerate(curves))
    # Every attack has a finding for the same limit, but the limit is drawn once.
    marks = {
        (finding.measurement.metric, finding.limit.max): _limit_mark(finding, curves, x, y)
        for finding in findings
        if finding.limit.max and finding.measurement.metric.startswith("tpr_at_")
    }
    resolved = RESOLVED * least
    return Chart(
        *(64, 504, 16, 424),
        x_ticks=rate_ticks(x),
        y_ticks=rate_ticks(y),
        lines=lines,
        marks=tuple(mark for mark in marks.values() if mark),
        chance=f"M{length(x.start)} {length(y.start)}L{length(x.end)} {length(y.end)}",
        resolved=round(x.at(resolved), 1),
        note=f"Grey: {holdout:,} holdout examples are too few to measure false positive rates below "
        f"{percent(float(f'{resolved:.2g}'))}.",
    )


def _curve(roc: Roc, x: Axis, y: Axis) -> str:
    """The part of the curve within the axes."""
    points = list(zip(roc.fpr, roc.tpr, strict=True))
    # fpr 0 has no place on a logarithmic axis. The curve starts at the left end with the tpr that it has there.
    first_tpr = max((tpr for fpr, tpr in points if fpr <= x.low), default=0.0)
    inner = [(fpr, tpr) for fpr, tpr in points if fpr > x.low and tpr >= y.low]
    start = [(x.low, first_tpr)] if first_tpr >= y.low else []
    return polyline([(x.at(fpr), y.at(tpr)) for fpr, tpr in start + inner])


def _limit_mark(finding: Finding, curves: Sequence[Roc], x: Axis, y: Axis) -> Mark | None:
    """The limit, with its label below it; above it if fewer curves pass there."""
    rate, limit = metric(finding.measurement.metric).chance, finding.limit.max
    if rate is None or limit is None or not (x.low <= rate <= x.high and y.low <= limit <= y.high):
        return None
    at, height = x.at(rate), y.at(limit)
    # How many curves would cross the label on either side; SVG's y grows downwards, so -WORDS is above.
    crossings = {side: sum(_passes(roc, x, y, at, height + side) for roc in curves) for side in (WORDS, -WORDS)}
    above = crossings[-WORDS] < crossings[WORDS]
    return Mark(length(at), length(height), f"limit {percent(limit)}", above)


def _passes(roc: Roc, x: Axis, y: Axis, at: float, height: float) -> bool:
    """Whether the curve crosses a label with its middle at (at, height)."""
    # The tpr of the curve at the left and right edges of the label, which is 4 * WORDS wide.
    left, right = (
        max((tpr for fpr, tpr in zip(roc.fpr, roc.tpr, strict=True) if x.at(fpr) <= edge), default=0.0)
        for edge in (at - 2 * WORDS, at + 2 * WORDS)
    )
    return y.at(right) - WORDS / 2 < height < y.at(left) + WORDS / 2


def law_chart(plots: Sequence[LawPlot]) -> Chart:
    """tpr - fpr against examples per class, as points and fitted lines, on logarithmic axes."""
    shots = [value for plot in plots for value in plot.shots]
    ends = [_law(plot, value) for plot in plots for value in (min(plot.shots), max(plot.shots))]
    excess = [value for plot in plots for value in plot.excess] + ends
    x, y = Axis(*_around(shots), 64, 504, log=True), Axis(*_around(excess), 304, 16, log=True)
    lines, marks = [], []
    for index, plot in enumerate(plots):
        # A power law is a straight line on logarithmic axes, so its two ends are enough.
        fitted = [(x.at(value), y.at(_law(plot, value))) for value in (min(plot.shots), max(plot.shots))]
        lines.append(Line(percent(plot.fpr), polyline(fitted), *styled(index)))
        measured = zip(plot.shots, plot.excess, strict=True)
        marks += [Mark(length(x.at(s)), length(y.at(e)), str(styled(index)[0])) for s, e in measured]
    x_ticks = tuple(Tick(length(x.at(v)), number(v)) for v in log_ticks(x.low, x.high))
    # The axis title has the unit, points.
    y_ticks = tuple(Tick(length(y.at(v)), hundredths(v)) for v in log_ticks(y.low, y.high))
    return Chart(64, 504, 16, 304, x_ticks=x_ticks, y_ticks=y_ticks, lines=tuple(lines), marks=tuple(marks))


def _law(plot: LawPlot, shots: float) -> float:
    return float(10 ** (plot.intercept + plot.slope * math.log10(shots)))


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with some room at both ends, for a logarithmic axis."""
    return min(values) / 1.5, max(values) * 1.5


def bars(histogram: Histogram, width: int, height: int) -> Bars:
    """The share of each group per bin, as steps on a width x height field; the highest bin reaches its top."""
    groups = [histogram.member, histogram.holdout]
    shares = [[count / max(sum(counts), 1) for count in counts] for counts in groups]
    top = max(max(share) for share in shares) or 1.0
    x = Axis(histogram.edges[0], histogram.edges[-1], 0, width)
    y = Axis(0, top, height, 0)
    member, holdout = (_steps(histogram.edges, share, x, y) for share in shares)
    ticks = tuple(Tick(length(x.at(v)), number(v)) for v in round_ticks(x.low, x.high, max(2, width // 80)))
    return Bars(plain(histogram.attack), width, height, member, holdout, ticks, percent(float(f"{top:.2g}")))


def _steps(edges: Sequence[float], shares: Sequence[float], x: Axis, y: Axis) -> str:
    path = [f"M{length(x.start)} {length(y.start)}"]
    path += [f"V{length(y.at(share))}H{length(x.at(edge))}" for share, edge in zip(shares, edges[1:], strict=True)]
    return "".join(path) + f"V{length(y.start)}"


def shared_scale(findings: Sequence[Finding]) -> Scale:
    """An axis for all findings of one limit: their intervals, the limit and the value that guessing reaches."""
    name, limit = findings[0].measurement.metric, findings[0].limit
    known = metric(name)
    ends = [end for f in findings for end in (f.measurement.low, f.measurement.high) if end is not None]
    # A bar is useless if its limit or the value of guessing lies outside the axis.
    ends += [edge for edge in (limit.max, limit.min, known.chance) if edge is not None]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.5
    low, high = low - room, high + room
    least, most = known.range
    # No room beyond the least and the most value that a figure can have, unless the limit lies there.
    if least is not None:
        low = max(low, min(least, *ends))
        # Rates with an upper limit are drawn from 0, so that the length of a bar shows its size; an AUC is not, since
        # guessing reaches .5.
        low = 0.0 if limit.max is not None and known.chance != 0.5 and not known.signed else low
    if most is not None:
        high = min(high, max(most, *ends))
    low, high = _outward(low, math.floor), min(_outward(high, math.ceil), 1.0 if known.percent else math.inf)
    return Scale(amount(name, low), amount(name, high), Axis(low, high, PAD, BAR - PAD))


def _outward(value: float, side: Callable[[float], int]) -> float:
    """The value with two significant digits, rounded by `side`: math.floor or math.ceil."""
    if value == 0:
        return 0.0
    power = math.floor(math.log10(abs(value))) - 1
    return float(f"{side(value / 10.0**power * (1 + 1e-12))}e{power}")


def interval(measurement: Measurement, limit: Limit, axis: Axis) -> Interval:
    """The bar of the measurement with its limit."""
    edge = limit.max if limit.max is not None else limit.min or 0.0
    limit_at, chance = axis.at(edge), metric(measurement.metric).chance
    good = (axis.start, limit_at) if limit.max is not None else (limit_at, axis.end)
    ends = (measurement.low, measurement.value, measurement.high)
    low, value, high = (None if end is None else length(axis.at(end)) for end in ends)
    return Interval(
        limit=length(limit_at),
        good=(length(good[0]), length(good[1] - good[0])),
        chance=None if chance is None else length(axis.at(chance)),
        low=low,
        value=value,
        high=high,
    )


def rate_ticks(axis: Axis) -> tuple[Tick, ...]:
    """Ticks of a logarithmic axis of shares."""
    return tuple(Tick(length(axis.at(v)), percent(v)) for v in log_ticks(axis.low, axis.high))


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range; also 2 and 5 times them if the range spans less than two powers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    short = math.log10(high / low) < 2
    steps = (1, 2, 5) if short else (1,)
    every = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
    return [value for value in every if low <= value <= high * (1 + 1e-9)]


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in the range: at most `most` + 1."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    # The small margins keep a tick at an end of the range if division rounds it to just outside.
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.10g}") for i in range(count)]


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path of straight lines through the points; points that round to the same place are drawn once."""
    placed = list(dict.fromkeys(f"{length(x)} {length(y)}" for x, y in points))
    return f"M{'L'.join(placed)}" if placed else ""


def length(value: float) -> str:
    """A length as text with at most one decimal."""
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{value + 0.0:.1f}".removesuffix(".0")
