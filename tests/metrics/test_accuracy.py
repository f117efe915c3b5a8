"""Accuracy and the binomial interval it rests on."""

import numpy as np
import pytest
from scipy.stats import binom

from privacy_gate.metrics.accuracy import HOLDOUT_ACCURACY, accuracy
from privacy_gate.metrics.intervals.binomial import clopper_pearson


@pytest.mark.parametrize("trials", [1, 10, 200])
@pytest.mark.parametrize("truth", [0.001, 0.3, 0.5, 0.97, 0.999])
def test_the_interval_covers_as_often_as_it_says(trials: int, truth: float) -> None:
    """Exactly: the probability of every outcome whose interval holds the truth, summed."""
    ends = [clopper_pearson(successes, trials, 0.95) for successes in range(trials + 1)]
    covered = sum(binom.pmf(k, trials, truth) for k, (low, high) in enumerate(ends) if low <= truth <= high)
    assert covered >= 0.95


def test_ends_are_where_the_tail_is_exactly_half_the_error() -> None:
    low, high = clopper_pearson(30, 100, 0.9)
    assert binom.sf(29, 100, low) == pytest.approx(0.05)
    assert binom.cdf(30, 100, high) == pytest.approx(0.05)


def test_failures_mirror_successes() -> None:
    low, high = clopper_pearson(7, 50, 0.95)
    assert clopper_pearson(43, 50, 0.95) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_accuracy_is_the_share_that_is_right() -> None:
    found = accuracy(np.array([True] * 180 + [False] * 20), 0.95, HOLDOUT_ACCURACY, "all")
    assert (found.metric, found.subject, found.value, found.samples) == ("holdout_accuracy", "all", 0.9, "200 rows")
    assert (found.low, found.high) == clopper_pearson(180, 200, 0.95)


def test_no_row_is_not_a_perfect_score() -> None:
    found = accuracy(np.zeros(0, dtype=bool), 0.95, HOLDOUT_ACCURACY)
    assert not found.measured
    assert found.reason == "needs n >= 1 rows, found 0"
