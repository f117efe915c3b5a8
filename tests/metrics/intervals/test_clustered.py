"""Accuracy on rows left out: every row counts once, and its interval knows that rows and models are shared."""

import numpy as np
import pytest

from privacy_gate.arrays import Bools
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.clustered import clustered_variance, left_out_accuracy, left_out_gain


def halves(rng: np.random.Generator, models: int, rows: int) -> Bools:
    """Training sets of half the rows, in complementary pairs."""
    pairs = [rng.permutation(rows) < rows // 2 for _ in range(models // 2)]
    return np.array([half for pair in pairs for half in (pair, ~pair)])


def test_it_is_the_mean_of_the_models_accuracies_if_all_rows_are_left_out_equally_often() -> None:
    rng = np.random.default_rng(1)
    included, correct = halves(rng, 8, 200), rng.random((8, 200)) < 0.7
    found = left_out_accuracy(correct, included, 0.95)
    assert found.value == pytest.approx(
        np.mean([own[~chosen].mean() for own, chosen in zip(correct, included, strict=True)])
    )


def test_a_row_that_no_model_was_trained_on_counts_once_like_every_other() -> None:
    included = np.array([[True, False, False], [False, True, False]])
    correct = np.array([[True, True, False], [True, True, False]])
    assert left_out_accuracy(correct, included, 0.95).value == pytest.approx(2 / 3)


def test_answers_on_a_models_own_training_rows_play_no_part() -> None:
    rng = np.random.default_rng(2)
    included, correct = halves(rng, 8, 100), rng.random((8, 100)) < 0.6
    assert left_out_accuracy(correct | included, included, 0.9) == left_out_accuracy(correct & ~included, included, 0.9)


def test_a_row_that_every_model_was_trained_on_is_refused() -> None:
    with pytest.raises(EvidenceError, match="1 rows are in every model's training set"):
        left_out_accuracy(np.ones((2, 2), bool), np.array([[True, False], [True, True]]), 0.95)


def test_the_variance_is_that_of_a_naive_double_loop() -> None:
    parts = np.random.default_rng(3).normal(size=(4, 5))
    naive = sum(
        parts[m, n] * parts[k, j]
        for m in range(4)
        for n in range(5)
        for k in range(4)
        for j in range(5)
        if m == k or n == j
    )
    assert clustered_variance(parts) == pytest.approx(max(naive, (parts**2).sum()))


def planted(rng: np.random.Generator, included: Bools, gain: float) -> tuple[Bools, Bools]:
    """Answers before and after a change that adds `gain` to each row's own chance to be right."""
    chance = rng.uniform(0.2, 0.9, included.shape[1])
    model = rng.normal(0, 0.02, (len(included), 1))
    draw = rng.random(included.shape)
    return draw < chance + model, draw < chance + model + gain


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered, gains, runs = 0, 0, 200
    for seed in range(runs):
        rng = np.random.default_rng([4, seed])
        included = halves(rng, 16, 300)
        before, after = planted(rng, included, 0.05)
        found = left_out_accuracy(before, included, 0.9)
        paired = left_out_gain(after, included, (before, included), 0.9)
        assert found.low is not None
        assert found.high is not None
        assert paired.low is not None
        assert paired.high is not None
        covered += found.low <= 0.55 <= found.high
        gains += paired.low <= 0.05 <= paired.high
    assert covered >= 0.85 * runs
    assert gains >= 0.85 * runs


def test_the_paired_change_is_measured_far_better_than_two_accuracies() -> None:
    rng = np.random.default_rng(5)
    included = halves(rng, 16, 300)
    before, after = planted(rng, included, 0.05)
    alone, paired = left_out_accuracy(after, included, 0.9), left_out_gain(after, included, (before, included), 0.9)
    assert paired.high is not None
    assert paired.low is not None
    assert alone.high is not None
    assert alone.low is not None
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    same = left_out_gain(before, included, (before, included), 0.9)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
