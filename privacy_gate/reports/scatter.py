"""Geometry of a scatter chart: points with interval bars, and labels that overlap nothing. Units are SVG's."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from privacy_gate.reports.pictures import Axis, Tick, length, polyline, rate_ticks, round_ticks
from privacy_gate.reports.words import percent
from privacy_gate.verdict.judgement import Measurement

WIDTH, HEIGHT = 980, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 964, 14, 404
LETTER, LINE = 7.0, 16.0
"""Largest width and height of a letter in a label."""

RADIUS = 5.5
REACH = (11.0, 22.0, 36.0, 52.0, 72.0, 96.0)
"""Distances from its point at which a label is tried, nearest first."""

EDGE = 24
"""Room at the left end of the axis for dots beyond it."""

MANY, APART = 3, 1.0
"""An outlier is cut off if at least MANY dots remain and its gap to them is more than APART times their range."""

DIRECTIONS = ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """The area of the overlap."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


@dataclass(frozen=True)
class Dot:
    """A point to draw, at the estimates of x and y. Dots of one `series` share a colour and are joined by a line."""

    label: str
    x: Measurement
    y: Measurement
    series: int
    filled: bool
    ringed: bool


@dataclass(frozen=True)
class Drawn:
    """A dot with its position, its interval bars as a path and the box of its label.

    beyond  its value lies left of the axis, so it is drawn at the axis' end
    leader  a line from the dot to its label; empty if the label is close
    """

    label: str
    x: str
    y: str
    bars: str
    series: int
    filled: bool
    ringed: bool
    beyond: bool
    box: Box
    leader: str

    @property
    def text(self) -> tuple[str, str]:
        """Position of the middle of the label's baseline."""
        return length((self.box.left + self.box.right) / 2), length(self.box.bottom - 4)


@dataclass(frozen=True)
class Scatter:
    """Dots between two axes, joined by a line per series. `limit` and `chance` are heights; no limit: None."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Drawn, ...]
    lines: tuple[tuple[int, str], ...]
    chance: str
    limit: str | None
    limit_label: str
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def scatter(dots: Sequence[Dot], rate: float, limit: float | None) -> Scatter | None:
    """Shares x (linear) against rates y (logarithmic); None if no dot has both.

    rate: the value that guessing reaches on y. The line of every series starts at the first dot.
    """
    known = [dot for dot in dots if dot.x.measured and dot.y.measured]
    if not known:
        return None
    # Heights and positions of all dots come first, because each label must avoid all of them.
    x = _linear(known)
    y = _log([end for dot in known for end in (dot.y.low, dot.y.value, dot.y.high) if end], rate, limit)
    places = [(x.at(dot.x.value or 0.0), y.at(dot.y.value or 0.0)) for dot in known]
    spans = [_spans(dot, x, y) for dot in known]
    # Labels avoid these horizontal lines, too: guessing and the limit.
    fixed = [y.at(rate)] + ([y.at(limit)] if limit is not None else [])
    beyond = [(dot.x.value or 0.0) < x.low for dot in known]
    # A dot beyond the axis is not drawn at its value, so its label names the value.
    labels = [
        f"{dot.label}, {percent(round(dot.x.value or 0.0, 3))}" if far else dot.label
        for dot, far in zip(known, beyond, strict=True)
    ]
    boxes = _labels(labels, places, spans, fixed)
    drawn = [
        Drawn(
            label=label,
            x=length(place[0]),
            y=length(place[1]),
            bars=f"M{length(across.left)} {length(place[1])}H{length(across.right)}"
            f"M{length(place[0])} {length(up.top)}V{length(up.bottom)}",
            series=dot.series,
            filled=dot.filled,
            ringed=dot.ringed,
            beyond=far,
            box=box,
            leader=_leader(place, box),
        )
        for dot, label, far, place, (across, up), box in zip(known, labels, beyond, places, spans, boxes, strict=True)
    ]
    return Scatter(
        x_ticks=tuple(Tick(length(x.at(at)), percent(at)) for at in round_ticks(x.low, x.high, 8)),
        y_ticks=rate_ticks(y),
        dots=tuple(drawn),
        lines=_lines(known, places),
        chance=length(y.at(rate)),
        limit=None if limit is None else length(y.at(limit)),
        limit_label="" if limit is None else f"limit {percent(limit)}",
    )


def _linear(dots: Sequence[Dot]) -> Axis:
    """An axis for all dots, except for outliers far to the left.

    One alternative that ruins the accuracy would otherwise press all the others into a corner of the chart.
    """
    ordered = sorted(dots, key=lambda dot: dot.x.value or 0.0)
    low, high = _range(ordered)
    # Cut at the last gap that is wide enough, from left to right.
    for first in range(1, len(ordered) - MANY + 1):
        least, most = _range(ordered[first:])
        if least - (ordered[first - 1].x.high or 0.0) > APART * (most - least):
            low, high = least, most
    room = 0.06 * (high - low) or 0.05
    return Axis(max(low - room, 0.0), min(high + room, 1.0), LEFT + EDGE, RIGHT)


def _range(dots: Sequence[Dot]) -> tuple[float, float]:
    return min(dot.x.low or 0.0 for dot in dots), max(dot.x.high or 0.0 for dot in dots)


def _log(ends: Sequence[float], rate: float, limit: float | None) -> Axis:
    """An axis for the measured rates, the limit and guessing; not below a fifth of guessing, which is only noise."""
    marks = [*ends, rate] + ([limit] if limit else [])
    return Axis(max(min(marks), rate / 4) / 1.25, min(max(marks) * 1.25, 1.0), BOTTOM, TOP, log=True)


def _spans(dot: Dot, x: Axis, y: Axis) -> tuple[Box, Box]:
    """The areas of the horizontal and the vertical interval bar."""
    at_x, at_y = x.at(dot.x.value or 0.0), y.at(dot.y.value or 0.0)
    across = Box(x.at(dot.x.low or 0.0), at_y - 1, x.at(dot.x.high or 0.0), at_y + 1)
    return across, Box(at_x - 1, y.at(dot.y.high or 0.0), at_x + 1, y.at(dot.y.low or 0.0))


def _labels(
    labels: Sequence[str],
    places: Sequence[tuple[float, float]],
    spans: Sequence[tuple[Box, Box]],
    fixed: Sequence[float],
) -> list[Box]:
    """A box for each label, placed one after the other at the position with the lowest cost.

    Overlapping a dot or another label costs most, crossing a bar or a line less, and the distance to the dot least.
    """
    dots = [Box(x - RADIUS - 2, y - RADIUS - 2, x + RADIUS + 2, y + RADIUS + 2) for x, y in places]
    # Bars and lines are thin, so they are taken as boxes 2 units wide.
    bars = [*itertools.chain(*spans), *(Box(LEFT, y - 1, RIGHT, y + 1) for y in fixed)]
    placed: list[Box] = []
    for label, place in zip(labels, places, strict=True):
        candidates = [_box(label, place, reach, way) for reach in REACH for way in DIRECTIONS]
        # Labels stay inside the chart, if any position does.
        inside = [box for box in candidates if box.left >= LEFT + 2 and box.right <= RIGHT - 2] or candidates
        inside = [box for box in inside if box.top >= TOP + 2 and box.bottom <= BOTTOM - 2] or inside
        # 1e6 outweighs every other term, so two labels only overlap if no position is free. Each bar that is crossed
        # costs 5 and its overlap, which weighs against moving the label a few units further away.
        costs = [
            1e6 * sum(box.shared(other) for other in (*dots, *placed))
            + sum(5 + box.shared(bar) for bar in bars if box.shared(bar))
            + _distance(place, box)
            for box in inside
        ]
        placed.append(inside[costs.index(min(costs))])
    return placed


def _box(label: str, place: tuple[float, float], reach: float, way: tuple[int, int]) -> Box:
    """The label's box at a distance from its dot, in the direction `way`."""
    width = LETTER * len(label)
    # On a diagonal, both steps of 0.7 together are as far as one step of 1 along an axis.
    slant = 0.7 if way[0] and way[1] else 1.0
    x, y = place[0] + way[0] * reach * slant, place[1] + way[1] * reach * slant
    left = x - width * (1 - way[0]) / 2
    top = y - LINE * (1 - way[1]) / 2
    return Box(left, top, left + width, top + LINE)


def _distance(place: tuple[float, float], box: Box) -> float:
    """Distance from the dot to the nearest point of the box."""
    x, y = _nearest(place, box)
    return float(((place[0] - x) ** 2 + (place[1] - y) ** 2) ** 0.5)


def _nearest(place: tuple[float, float], box: Box) -> tuple[float, float]:
    return min(max(place[0], box.left), box.right), min(max(place[1], box.top), box.bottom)


def _leader(place: tuple[float, float], box: Box) -> str:
    """A line to a label that is not next to its dot; empty if it is."""
    return polyline([place, _nearest(place, box)]) if _distance(place, box) > REACH[1] - RADIUS else ""


def _lines(dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> tuple[tuple[int, str], ...]:
    """A path for every other series, from the first dot along the dots of the series in their order."""
    paths: dict[int, list[tuple[float, float]]] = {}
    for dot, place in zip(dots[1:], places[1:], strict=True):
        paths.setdefault(dot.series, [places[0]]).append(place)
    return tuple((series, polyline(points)) for series, points in paths.items())
