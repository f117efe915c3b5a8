"""Quantiles of rows known with errors: intervals that cover, estimates that are not drawn up by noise."""

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.row_quantiles import RowEstimates, deconvolve, quantile, quantile_ends

SHAPES = {
    "alike": lambda rng, rows: np.zeros(rows),
    "gaussian": lambda rng, rows: 1 + 0.5 * rng.normal(size=rows),
    "exponential": lambda rng, rows: rng.exponential(size=rows),
    "a few far out": lambda rng, rows: np.where(np.arange(rows) < rows // 100, 4.0, 0.3),
}


def reached(truth: Floats, q: float) -> float:
    """What a share 1 - q of the rows, one at least, reaches."""
    return float(np.sort(truth)[len(truth) - max(1, int((1 - q) * len(truth) + 1e-9))])


def rows_of(rng: np.random.Generator, truth: Floats, error: float = 0.25) -> RowEstimates:
    errors = error * np.exp(0.1 * rng.normal(size=len(truth)))
    return RowEstimates(truth + errors * rng.normal(size=len(truth)), errors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("q", [0.5, 0.99, 1.0])
def test_intervals_cover_the_true_quantile_at_least_as_often_as_they_say(shape: str, q: float) -> None:
    rng, runs, held = np.random.default_rng(0), 300, 0
    for _ in range(runs):
        truth = SHAPES[shape](rng, 500)
        low, high = quantile_ends(rows_of(rng, truth), q, 0.95)
        held += low <= reached(truth, q) <= high
    assert held / runs >= 0.95 - 0.01 - 2 * np.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_nearer_to_the_truth_than_the_largest_estimate(shape: str) -> None:
    rng = np.random.default_rng(1)
    wrong, naive = [], []
    for _ in range(20):
        truth = SHAPES[shape](rng, 1000)
        rows = rows_of(rng, truth, 0.5)
        wrong.append(quantile(rows, deconvolve(rows), 1.0, 0.95)[1] - truth.max())
        naive.append(rows.value.max() - truth.max())
    assert abs(np.mean(wrong)) < 0.6 * abs(np.mean(naive))


def test_without_errors_quantiles_are_those_of_the_rows() -> None:
    truth = np.random.default_rng(2).normal(size=500)
    rows = RowEstimates(truth, np.full(500, 1e-6))
    for q in (0.5, 0.99, 1.0):
        low, value, high = quantile(rows, deconvolve(rows), q, 0.95)
        assert value == pytest.approx(reached(truth, q), abs=0.05)
        assert low - 0.05 <= reached(truth, q) <= high + 0.05


def test_deconvolution_finds_the_shares_of_two_kinds_of_rows() -> None:
    rng = np.random.default_rng(3)
    truth = np.where(rng.random(5000) < 0.1, 3.0, 0.0)
    found = deconvolve(rows_of(rng, truth, 0.5))
    assert found.weight.sum() == pytest.approx(1.0)
    assert found.weight[found.grid > 1.5].sum() == pytest.approx((truth > 0).mean(), abs=0.01)
    assert np.mean((found.shrunk - truth) ** 2) < 0.25 * 0.5**2


def test_a_lone_row_far_out_is_not_drawn_to_the_others() -> None:
    rng = np.random.default_rng(4)
    truth = np.zeros(2000)
    truth[7] = 6.0
    rows = rows_of(rng, truth)
    assert deconvolve(rows).shrunk[7] == pytest.approx(rows.value[7], abs=0.1)


def test_more_models_narrow_the_interval_and_the_middle_moves_least() -> None:
    rng = np.random.default_rng(5)
    truth = rng.exponential(size=1000)
    widths = [
        [np.diff(quantile_ends(rows_of(rng, truth, error), q, 0.95)).item() for q in (0.5, 1.0)] for error in (0.5, 0.1)
    ]
    assert widths[1][0] < widths[0][0]
    assert widths[1][1] < widths[0][1]


def test_one_row_has_an_interval() -> None:
    rows = RowEstimates(np.array([1.0]), np.array([0.5]))
    low, value, high = quantile(rows, deconvolve(rows), 1.0, 0.95)
    assert (low, value, high) == pytest.approx((1 - 0.5 * 1.96, 1.0, 1 + 0.5 * 1.96), abs=1e-3)


@pytest.mark.parametrize(
    ("value", "error"), [([1.0], [0.0]), ([np.nan], [1.0]), ([-np.inf], [1.0]), ([], []), ([1.0], [1.0, 1.0])]
)
def test_rows_without_a_figure_or_an_error_are_refused(value: list[float], error: list[float]) -> None:
    with pytest.raises(EvidenceError):
        RowEstimates(np.array(value), np.array(error))
