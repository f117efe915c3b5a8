"""The chart of a federation with hostile clients."""

from privacy_gate.reports.hostile import byzantine_chart
from privacy_gate.verdict.exhibits import ByzantineLine, ByzantinePlot

PLOT = ByzantinePlot(
    clients=10,
    lines=(
        ByzantineLine(rule="mean\n<b>", byzantine=(0, 1, 2), accuracy=(1.0, 0.5, 0.0)),
        ByzantineLine(rule="median", byzantine=(0, 2), accuracy=(0.9, 0.8)),
    ),
)


def test_points_are_at_their_rates_and_lines_join_them() -> None:
    chart = byzantine_chart(PLOT)
    assert [line.name for line in chart.lines] == ["mean <b>", "median"]
    assert chart.lines[0].path == "M64 16L280 160L496 304"
    assert [(mark.x, mark.y) for mark in chart.marks[:3]] == [("64", "16"), ("280", "160"), ("496", "304")]
    assert [tick.label for tick in chart.x_ticks] == ["0", "1", "2"]
    assert chart.note == "of 10 clients"
