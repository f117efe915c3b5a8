"""Differences of paired shares: score and interval against searches and simulations."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from privacy_gate.metrics.intervals.paired import paired_interval, paired_score


@pytest.mark.parametrize(
    ("won", "lost", "rows", "difference"), [(40, 20, 160, 0.05), (3, 9, 50, -0.01), (0, 1, 9, 0.3)]
)
def test_the_paired_score_has_the_variance_of_the_likeliest_shares(
    won: int, lost: int, rows: int, difference: float
) -> None:
    """Against a search for the maximum of the multinomial likelihood."""

    def unlikely(second: float) -> float:
        first, same = second + difference, 1 - 2 * second - difference
        counts, shares = np.array([won, lost, rows - won - lost]), np.array([first, second, same])
        return -float(counts @ np.log(shares))

    low, high = max(0.0, -difference), (1 - difference) / 2
    second = minimize_scalar(unlikely, bounds=(low + 1e-9, high - 1e-9), method="bounded", options={"xatol": 1e-12}).x
    variance = rows * (2 * second + difference - difference**2)
    expected = (won - lost - rows * difference) / np.sqrt(variance)
    found = paired_score(np.array([won]), np.array([lost]), np.array([rows]), difference)[0]
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_difference_the_paired_score_is_mcnemars() -> None:
    found = paired_score(np.array([12]), np.array([5]), np.array([100]), 0.0)[0]
    assert found == pytest.approx(7 / np.sqrt(17))


@pytest.mark.parametrize(("up", "down", "rows"), [(0.1, 0.05, 100), (0.02, 0.0, 60), (0.6, 0.1, 40)])
def test_the_interval_covers_the_true_difference(up: float, down: float, rows: int) -> None:
    drawn = np.random.default_rng(0).multinomial(rows, [up, down, 1 - up - down], 2000)
    low, high = paired_interval(drawn[:, 0], drawn[:, 1], np.full(2000, rows), 0.95)
    assert ((low <= up - down) & (up - down <= high)).mean() > 0.93


def test_the_interval_has_a_width_even_if_the_models_agree_on_every_row() -> None:
    low, high = paired_interval(np.array([0]), np.array([0]), np.array([100]), 0.95)
    assert low == pytest.approx(-high)
    assert 0.03 < high < 0.05
