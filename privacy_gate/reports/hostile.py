"""The picture of a federation under hostile clients: accuracy against their number, a line for each rule."""

from privacy_gate.reports.pictures import Axis, Chart, Line, Mark, Tick, length, polyline, styled
from privacy_gate.reports.words import number, percent, plain
from privacy_gate.verdict import ByzantinePlot

RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def byzantine_chart(plot: ByzantinePlot) -> Chart:
    """Points are measured: worst accuracy of any attack tried; the recipe's own rule is the first line."""
    most = max(max(line.byzantine) for line in plot.lines)
    x, y = Axis(0, most, 64, 496), Axis(0, 1, 304, 16)
    lines, marks = [], []
    for index, line in enumerate(plot.lines):
        points = [(x.at(f), y.at(rate)) for f, rate in zip(line.byzantine, line.accuracy, strict=True)]
        lines.append(Line(plain(line.rule), polyline(points), *styled(index)))
        marks += [Mark(length(left), length(top), str(styled(index)[0])) for left, top in points]
    return Chart(
        *(64, 504, 16, 304),
        x_ticks=tuple(Tick(length(x.at(f)), number(float(f))) for f in range(most + 1)),
        y_ticks=tuple(Tick(length(y.at(rate)), percent(rate)) for rate in RATES),
        lines=tuple(lines),
        marks=tuple(marks),
        note=f"of {plot.clients:,} clients",
    )
