"""The most exposed examples as text, and charts of the exposure of classes, groups and clients."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privacy_gate.reports.pictures import Axis, Chart, Mark, Tick, length, log_ticks, round_ticks
from privacy_gate.reports.words import Shown, hundredths, number, percent, plain, shown
from privacy_gate.verdict.exhibits import GradientScatter, VulnerableRow, VulnerableRows
from privacy_gate.verdict.judgement import Measurement
from privacy_gate.verdict.report import CheckRecord

DRAWN = 24
"""A chart draws at most this many classes or groups: the most exposed."""

LABEL = 20
"""Longest name in a chart, in characters; the table of measurements has the full names."""

DECADES = 4
"""The axis of gradient norms spans at most this many powers of ten; smaller norms are drawn at its end."""

LINE = 24
"""Height of one group's row in a chart."""

HEADS = ("Example", "Class", "Split", "Vulnerability", "Identified", "Memorisation", "Gradient norm")


def listed(check: CheckRecord) -> VulnerableRows | None:
    """The check's list of the most exposed examples; None if it has no list."""
    return next((exhibit for exhibit in check.result.exhibits if isinstance(exhibit, VulnerableRows)), None)


def cells(row: VulnerableRow) -> tuple[str, ...]:
    """One listed example as text, in the order of HEADS."""
    return (
        row.name,
        f"{row.label:,}",
        row.split,
        f"{row.vulnerability:.2f}".replace("-", "−"),
        f"{100 * row.tpr:.1f} %",
        f"{row.memorisation:.2f}".replace("-", "−"),
        "not measured" if row.gradient is None else number(float(f"{row.gradient:.3g}")),
    )


def caption(rows: VulnerableRows) -> str:
    """An explanation of the list and its columns."""
    return (
        f"The {len(rows.rows):,} most exposed of {rows.audited:,} audited examples, members and holdout, each named by "
        "a hash of its id. Only somebody with the whole table can find the example for a hash. Vulnerability: how far "
        "training on the example shifts its log-odds, in standard deviations between models, corrected for sampling "
        "noise. Identified: how often an attacker with a false positive rate of "
        f"{percent(rows.fpr)} identifies the example as a member if it was trained on. Memorisation: how much training "
        "on the example raises the probability of its class."
    )


def gradient_chart(scatter: GradientScatter) -> Chart:
    """Vulnerability against the gradient norm, on a logarithmic axis of at most DECADES powers of ten."""
    # A fully fitted example has a gradient of about 0, which has no place on a logarithmic axis.
    most = max(scatter.gradient) or 1.0
    floor = most / 10**DECADES
    x = Axis(max(min(scatter.gradient), floor) / 1.2, most * 1.2, 64, 504, log=True)
    room = 0.05 * (max(scatter.vulnerability) - min(scatter.vulnerability)) or 0.5
    y = Axis(min(scatter.vulnerability) - room, max(scatter.vulnerability) + room, 304, 16)
    points = zip(scatter.gradient, scatter.vulnerability, strict=True)
    return Chart(
        *(64, 504, 16, 304),
        x_ticks=tuple(Tick(length(x.at(value)), number(value)) for value in log_ticks(x.low, x.high)),
        y_ticks=tuple(Tick(length(y.at(value)), number(value)) for value in round_ticks(y.low, y.high, 6)),
        lines=(),
        marks=tuple(Mark(length(x.at(norm)), length(y.at(d)), "") for norm, d in points),
        chance=f"M{length(x.start)} {length(y.at(0.0))}H{length(x.end)}" if y.low <= 0 <= y.high else "",
        note=f"{len(scatter.gradient):,} of {scatter.audited:,} audited examples, evenly spaced by vulnerability.",
    )


@dataclass(frozen=True)
class Strip:
    """One row of the chart: the name of a class or group, its height, and its estimate and interval on the axis."""

    name: str
    y: float
    low: str
    value: str
    high: str
    shown: Shown


@dataclass(frozen=True)
class Forest:
    """A forest plot: intervals of classes or groups below each other on one axis, the most exposed first."""

    height: int
    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]
    chance: str
    overall: str
    note: str

    @property
    def bottom(self) -> int:
        """Height at which the rows end and the axis begins."""
        return self.height - 44


def forests(check: CheckRecord) -> list[tuple[str, Forest]]:
    """A chart with its heading for each of classes, groups and clients, if the check measured at least two."""
    every = [m for m in check.result.measurements if m.metric == "vulnerability" and m.measured]
    # Subjects are "all", or a kind and a name, for instance "class: 3".
    overall = next((m for m in every if m.subject == "all"), None)
    parts = (("Classes", "class: "), ("Groups", "group: "), ("Clients", "client: "))
    grouped = [(title, [m for m in every if m.subject.startswith(start)]) for title, start in parts]
    return [(title, forest(group, overall)) for title, group in grouped if len(group) > 1]


def forest(measurements: Sequence[Measurement], overall: Measurement | None) -> Forest:
    """Vulnerability of the DRAWN most exposed groups, with a line at 0 and one at the value of all examples."""
    # Ties are sorted by name, so that the same report always gives the same chart.
    ordered = sorted(measurements, key=lambda m: (-(m.value or 0.0), m.subject))[:DRAWN]
    x = _share_axis([*ordered, *([overall] if overall else [])])
    strips = tuple(_strip(m, place, x) for place, m in enumerate(ordered))
    rest = len(measurements) - len(ordered)
    return Forest(
        height=LINE * len(strips) + 22 + 44,
        strips=strips,
        ticks=tuple(Tick(length(x.at(value)), hundredths(value)) for value in round_ticks(x.low, x.high, 5)),
        chance=length(x.at(0.0)),
        overall=length(x.at(overall.value)) if overall and overall.value is not None else "",
        note=f"The {len(strips)} most exposed; the measurements list {rest:,} more." if rest else "",
    )


def _share_axis(measurements: Iterable[Measurement]) -> Axis:
    # 0 is always on the axis: it is the value of a model that reveals nothing.
    ends = [0.0] + [end for m in measurements for end in (m.low, m.high) if end is not None]
    room = 0.04 * (max(ends) - min(ends)) or 0.05
    return Axis(max(min(ends) - room, -1.0), min(max(ends) + room, 1.0), 168, 504)


def _strip(measurement: Measurement, place: int, x: Axis) -> Strip:
    name = plain(measurement.subject.partition(": ")[2])
    name = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
    low, value, high = (length(x.at(end or 0.0)) for end in (measurement.low, measurement.value, measurement.high))
    figure = shown(measurement) or Shown("", "", "")
    return Strip(name, 22 + LINE * (place + 0.5), low, value, high, figure)
