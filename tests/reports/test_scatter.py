"""Labels overlap no dot and no other label, and stay inside the chart."""

import itertools

import numpy as np
import pytest

from privacy_gate.reports.scatter import BOTTOM, LEFT, RADIUS, RIGHT, TOP, Box, Dot, scatter
from privacy_gate.verdict.judgement import Measurement, not_measured


def figure(value: float, reach: float) -> Measurement:
    low, high = max(value - reach, 0.0), min(value + reach, 1.0)
    return Measurement(metric="any", value=value, low=low, high=high, confidence=0.95)


def dot(label: str, x: float, y: float, series: int = 1) -> Dot:
    return Dot(label, figure(x, 0.01), figure(y, 0.02), series, filled=True, ringed=False)


def overlap(a: Box, b: Box) -> bool:
    return a.shared(b) > 0


@pytest.mark.parametrize("seed", range(20))
def test_labels_of_crowded_dots_overlap_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dots = [dot(f"label {i} of 12", *(0.8, 0.2) + rng.normal(size=2) * (0.01, 0.03)) for i in range(12)]
    drawn = scatter(dots, 0.01, 0.05)
    assert drawn is not None
    boxes = [each.box for each in drawn.dots]
    spots = [
        Box(float(d.x) - RADIUS, float(d.y) - RADIUS, float(d.x) + RADIUS, float(d.y) + RADIUS) for d in drawn.dots
    ]
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    assert not any(overlap(a, b) for a in boxes for b in spots)
    assert all(b.left >= LEFT and b.right <= RIGHT and b.top >= TOP and b.bottom <= BOTTOM for b in boxes)


def test_better_is_lower_and_further_right() -> None:
    drawn = scatter([dot("a", 0.8, 0.3), dot("b", 0.7, 0.1)], 0.01, None)
    assert drawn is not None
    a, b = drawn.dots
    assert float(a.x) > float(b.x)
    assert float(a.y) < float(b.y)  # SVG counts downwards


def test_a_missing_measurement_is_not_drawn_and_without_any_there_is_no_chart() -> None:
    missing = Dot("c", not_measured("x", "why"), figure(0.1, 0.01), 1, filled=False, ringed=False)
    drawn = scatter([dot("a", 0.8, 0.3), missing], 0.01, None)
    assert drawn is not None
    assert [each.label for each in drawn.dots] == ["a"]
    assert scatter([missing], 0.01, 0.05) is None


def test_a_dot_far_to_the_left_is_at_the_edge_and_labelled_with_its_value() -> None:
    near = [dot(f"n{i}", 0.8 + 0.004 * i, 0.2 + 0.05 * i) for i in range(4)]
    drawn = scatter([*near, dot("far", 0.3, 0.1)], 0.01, None)
    assert drawn is not None
    assert [each.beyond for each in drawn.dots] == [False] * 4 + [True]
    assert drawn.dots[-1].label == "far, 30 %"
    ladder = scatter([dot(f"n{i}", 0.8 - 0.05 * i, 0.2) for i in range(6)], 0.01, None)
    assert ladder is not None
    assert not any(each.beyond for each in ladder.dots)


def test_zero_leak_is_at_the_foot_of_the_logarithmic_axis() -> None:
    drawn = scatter([dot("a", 0.8, 0.3), dot("none", 0.8, 0.0)], 0.01, 0.05)
    assert drawn is not None
    assert float(drawn.dots[1].y) == BOTTOM


def test_lines_lead_from_the_first_dot_along_each_series() -> None:
    drawn = scatter([dot("a", 0.8, 0.3, 7), dot("b", 0.7, 0.2), dot("c", 0.75, 0.1), dot("d", 0.6, 0.1, 2)], 0.01, None)
    assert drawn is not None
    assert [(series, path.count("L")) for series, path in drawn.lines] == [(1, 2), (2, 1)]
