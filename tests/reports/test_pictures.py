"""The geometry of the charts."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy_gate.metrics.rates import needed_holdout
from privacy_gate.reports.pictures import (
    BAR,
    RESOLVED,
    Axis,
    bars,
    interval,
    law_chart,
    roc_chart,
    shared_scale,
    styled,
)
from privacy_gate.verdict.exhibits import Histogram, LawPlot, Roc
from privacy_gate.verdict.judgement import Finding, Limit, Measurement, judge, not_measured

GUESSING = Roc(attack="guess", fpr=(0.0, 0.001, 0.01, 0.1, 1.0), tpr=(0.0, 0.001, 0.01, 0.1, 1.0))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def finding(low: float, value: float, high: float, limit: Limit, metric: str = "tpr_at_0.01_fpr") -> Finding:
    measurement = Measurement(metric=metric, value=value, low=low, high=high, confidence=0.95)
    return judge("membership", measurement, limit)


def test_an_attack_that_guesses_is_drawn_on_the_chance_line() -> None:
    chart = roc_chart([GUESSING], 1000, [])
    (x0, y0), (x1, y1) = points(chart.chance)
    for x, y in points(chart.lines[0].path):
        assert y == pytest.approx(y0 + (x - x0) / (x1 - x0) * (y1 - y0), abs=0.1)


def test_a_stronger_attack_is_drawn_higher_everywhere() -> None:
    strong = GUESSING.model_copy(update={"tpr": (0.01, 0.02, 0.1, 0.5, 1.0)})
    chart = roc_chart([strong, GUESSING], 1000, [])
    upper, lower = (dict(points(line.path)) for line in chart.lines)
    assert all(upper[x] <= lower[x] for x in upper.keys() & lower.keys())
    assert len(upper.keys() & lower.keys()) >= 3


def test_a_curve_begins_at_the_left_edge_with_its_tpr_there() -> None:
    steep = Roc(attack="a", fpr=(0.0, 0.0, 1.0), tpr=(0.0, 0.5, 1.0))
    chart = roc_chart([steep], 100, [])
    first = points(chart.lines[0].path)[0]
    assert first[0] == chart.left
    assert first[1] == pytest.approx(16 + (424 - 16) * math.log10(2) / 2, abs=0.1)


@pytest.mark.parametrize("holdout", [1000, 2000, 10_000, 12_345])
def test_the_grey_part_ends_at_the_rate_that_the_holdout_resolves(holdout: int) -> None:
    assert needed_holdout(RESOLVED / holdout) == holdout
    chart = roc_chart([GUESSING], holdout, [])
    axis = Axis(1 / holdout, 1, chart.left, chart.right, log=True)
    assert chart.resolved == pytest.approx(axis.at(RESOLVED / holdout), abs=0.05)


def test_a_limit_on_the_true_positive_rate_is_marked_once_at_its_value() -> None:
    findings = [finding(0.1, 0.2, 0.3, Limit(max=0.05)), finding(0.01, 0.02, 0.03, Limit(max=0.05))]
    chart = roc_chart([GUESSING], 1000, [*findings, finding(0.5, 0.6, 0.7, Limit(max=0.6), "auc")])
    (mark,) = chart.marks
    assert mark.label == "limit 5 %"
    x, y = Axis(0.001, 1, 64, 504, log=True), Axis(0.001, 1, 424, 16, log=True)
    assert (float(mark.x), float(mark.y)) == pytest.approx((x.at(0.01), y.at(0.05)), abs=0.05)


def test_the_label_of_a_limit_is_on_the_side_that_fewer_curves_cross() -> None:
    limit = finding(0.01, 0.02, 0.03, Limit(max=0.05))
    below = GUESSING.model_copy(update={"tpr": (0.0, 0.01, 0.038, 0.12, 1.0)})
    above = GUESSING.model_copy(update={"tpr": (0.02, 0.06, 0.068, 0.3, 1.0)})
    for curves, expected in (([GUESSING], False), ([below], True), ([above], False), ([below, above], False)):
        assert [mark.above for mark in roc_chart(curves, 1000, [limit]).marks] == [expected]


def test_no_curve_leaves_its_field() -> None:
    weak = Roc(attack="a", fpr=(0.0, 1e-9, 0.5, 1.0), tpr=(0.0, 0.0, 1e-6, 1.0))
    for x, y in points(roc_chart([weak, GUESSING], 500, []).lines[0].path):
        assert 64 <= x <= 504
        assert 16 <= y <= 424


def test_the_area_of_a_histogram_is_the_share_of_each_group() -> None:
    drawn = bars(Histogram(attack="a", edges=(0.0, 1.0, 2.0), member=(1, 3), holdout=(20, 20)), 100, 75)
    assert drawn.member == "M0 75V50H50V0H100V75"
    assert drawn.holdout == "M0 75V25H50V25H100V75"
    assert drawn.top == "75 %"


def test_an_empty_histogram_is_a_flat_line() -> None:
    drawn = bars(Histogram(attack="a", edges=(0.0, 1.0), member=(0,), holdout=(0,)), 100, 50)
    assert drawn.member == "M0 50V50H100V50"


def test_points_of_an_exact_law_are_on_its_line() -> None:
    shots = (10.0, 30.0, 100.0)
    excess = tuple(10 ** (0.2 - 0.5 * math.log10(s)) for s in shots)
    chart = law_chart([LawPlot(fpr=0.01, shots=shots, excess=excess, slope=-0.5, intercept=0.2)])
    (x0, y0), (x1, y1) = points(chart.lines[0].path)
    for mark in chart.marks:
        assert float(mark.y) == pytest.approx(y0 + (float(mark.x) - x0) / (x1 - x0) * (y1 - y0), abs=0.15)


RATE = st.floats(0, 1, allow_nan=False)


@given(
    st.lists(st.tuples(RATE, RATE, RATE).map(sorted), min_size=1, max_size=4),
    RATE,
    st.booleans(),
    st.sampled_from(["tpr_at_0.01_fpr", "auc", "holdout_accuracy", "epsilon"]),
)
def test_bars_keep_the_order_of_their_figures_inside_the_field(
    figures: list[list[float]], edge: float, upper: bool, metric: str
) -> None:
    limit = Limit(max=edge) if upper else Limit(min=edge)
    findings = [finding(*ends, limit, metric) for ends in figures]
    axis = shared_scale(findings).axis
    for one in findings:
        bar = interval(one.measurement, limit, axis)
        assert bar.low is not None and bar.value is not None and bar.high is not None  # noqa: PT018
        low, value, high, line = (float(at) for at in (bar.low, bar.value, bar.high, bar.limit))
        assert 0 <= low <= value <= high <= BAR
        assert 0 <= line <= BAR
        if one.measurement.high is not None and upper:
            assert (high <= line) or one.measurement.high > edge
        assert float(bar.good[1]) >= 0


def test_a_missing_measurement_has_a_limit_but_no_bar() -> None:
    missing = judge("membership", not_measured("auc", "no rows"), Limit(max=0.6))
    bar = interval(missing.measurement, missing.limit, shared_scale([missing]).axis)
    assert (bar.low, bar.value, bar.high) == (None, None, None)
    assert 0 < float(bar.limit) < BAR


def test_the_first_32_series_look_different_and_neighbours_differ_in_colour_and_dash() -> None:
    styles = [styled(i) for i in range(32)]
    assert len(set(styles)) == 32
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(styles) if b[0] != 0)


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [
        ("disparity_p_value", 0.0, 0.9),
        ("disparate_mia", 0.0, 0.1),
        ("inverted_backdoor", 0.0, 0.02),
        ("client_std", 0.0, 0.7),
        ("corruption_ratio", 0.01, 1.3),
        ("balanced_accuracy", 0.5, 0.52),
    ],
)
def test_an_axis_has_no_room_beyond_what_a_figure_can_be(metric: str, low: float, high: float) -> None:
    for limit in (Limit(min=0.05), Limit(max=0.6)):
        axis = shared_scale([finding(low, (low + high) / 2, high, limit, metric)]).axis
        assert 0 <= axis.low <= low
        assert axis.high >= high
        if metric != "corruption_ratio":
            assert axis.high <= 1
