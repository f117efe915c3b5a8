"""Differences from the champion: intervals by simulation, equal models, planted losses, and no false certainty."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.accuracy import accuracy
from privacy_gate.metrics.catalogue import METRICS
from privacy_gate.metrics.intervals.paired import paired_interval
from privacy_gate.metrics.versus import ratio_versus, share_versus, unlearnt, versus
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status, not_measured

Bools = NDArray[np.bool_]
DROP = Limit(min=-0.05)


def shares(own: Bools, champion: Bools) -> Measurement:
    figures = accuracy(own, 0.95, METRICS["robust_accuracy"]), accuracy(champion, 0.95, METRICS["robust_accuracy"])
    return share_versus(figures, (own, champion), 0.95)


def ratios(own: tuple[Bools, Mapping[str, Bools]], champion: tuple[Bools, Mapping[str, Bools]]) -> Measurement:
    return ratio_versus((ratio(*own), ratio(*champion)), (own, champion), 0.95, np.random.default_rng(2))


def ratio(right: Bools, spoiled: Mapping[str, Bools]) -> Measurement:
    """The figure alone: its own interval has no part in the difference's, and takes its time."""
    value = float(np.mean([each.mean() for each in spoiled.values()]) / right.mean())
    return Measurement(metric="corruption_ratio", value=value, low=value, high=value, confidence=0.95)


@pytest.mark.parametrize(("up", "down", "rows"), [(0.1, 0.05, 100), (0.02, 0.04, 500), (0.3, 0.3, 60)])
def test_the_interval_of_a_difference_of_shares_covers_it_as_often_as_it_says(
    up: float, down: float, rows: int
) -> None:
    rng, covered, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        kind = rng.choice(4, rows, p=[up, down, (1 - up - down) * 0.8, (1 - up - down) * 0.2])
        found = shares((kind == 0) | (kind == 2), (kind == 1) | (kind == 2))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= up - down <= found.high
    assert covered / runs > 0.93


def test_a_loss_at_the_limit_passes_rarely_and_no_loss_mostly() -> None:
    """500 rows. Lost five points: one-sided 2.5 % at most. Equal, though a tenth of the rows tells them apart: 90 %."""
    rng, rows, runs = np.random.default_rng(0), 500, 4000
    passed = {}
    for lost in (0.05, 0.0):
        counts = rng.multinomial(rows, [0.05, 0.05 + lost, 0.9 - lost], runs)
        low, _ = paired_interval(counts[:, 0], counts[:, 1], np.full(runs, rows), 0.95)
        passed[lost] = float((low >= -0.05).mean())
    assert passed[0.05] < 0.032
    assert passed[0.0] > 0.9


def drawn(
    rng: np.random.Generator, rows: int, kept: float, hard: NDArray[np.float64]
) -> tuple[Bools, dict[str, Bools]]:
    """Answers of a model: right on 90 %, and of these on a share `kept` under each corruption, rows alike hard."""
    right = rng.random(rows) < 0.9
    return right, {str(each): right & (rng.random(rows) < np.clip(kept + hard, 0, 1)) for each in range(5)}


@pytest.mark.parametrize(("own", "champion"), [(0.7, 0.7), (0.6, 0.7), (0.75, 0.7)])
def test_the_interval_of_a_difference_of_ratios_covers_it_as_often_as_it_says(own: float, champion: float) -> None:
    """Hardness of a row is common to both models, which is why they are resampled together."""
    rng, covered, runs, rows = np.random.default_rng(3), 0, 120, 200
    for _ in range(runs):
        hard = rng.uniform(-0.2, 0.2, rows)
        found = ratios(drawn(rng, rows, own, hard), drawn(rng, rows, champion, hard))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= own - champion <= found.high
    assert 0.92 < covered / runs <= 1


def test_an_equal_model_passes_a_drop_of_five_points_from_73_rows_on_and_not_before() -> None:
    """Where no row tells the models apart the low end is -z^2 / (n + z^2)."""
    for rows, status in ((73, Status.MET), (72, Status.VIOLATED)):
        right = np.arange(rows) % 5 > 0
        found = shares(right, right)
        assert found.value == 0
        assert found.low == pytest.approx(-(1.959964**2) / (rows + 1.959964**2), abs=1e-6)
        assert judged_status(found, DROP) is status


def test_a_model_that_lost_ten_points_is_distinguished_from_one_that_lost_none() -> None:
    champion = np.arange(500) % 10 > 0
    worse = champion & (np.arange(500) % 10 > 1)
    found = shares(worse, champion)
    assert found.metric == versus("robust_accuracy")
    assert found.value == pytest.approx(-0.1)
    assert found.champion == pytest.approx(0.9)
    assert judged_status(found, DROP) is Status.VIOLATED
    assert judged_status(shares(champion, worse), DROP) is Status.MET
    assert "500 rows, of which 0 are the candidate's alone and 50 the champion's alone" in found.samples


def test_pairs_tell_more_than_two_accuracies_do() -> None:
    """200 rows on which the models differ twice: apart, the difference of two intervals would be 10 points wide."""
    own = np.arange(200) % 5 > 0
    champion = own.copy()
    champion[[0, 1]] = ~champion[[0, 1]]
    found = shares(own, champion)
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.low < 0.06


def test_equal_ratios_have_an_interval_with_a_width_and_swapping_models_swaps_the_sign() -> None:
    rng = np.random.default_rng(5)
    one, other = (drawn(rng, 300, kept, np.zeros(300)) for kept in (0.7, 0.5))
    same = ratios(one, one)
    assert same.value == 0
    assert same.low is not None
    assert same.low < -(1.96**2) / (300 + 1.96**2)
    assert judged_status(same, DROP) is Status.MET
    there, back = ratios(one, other), ratios(other, one)
    assert (there.value, there.low, there.high) == pytest.approx(
        (-(back.value or 0), -(back.high or 0), -(back.low or 0))
    )
    assert judged_status(there, DROP) is Status.MET
    assert judged_status(back, DROP) is Status.VIOLATED


def test_a_missing_figure_is_not_measured_and_the_reason_says_which_model_lacks_it() -> None:
    right = np.ones(100, dtype=bool)
    sound, masked = (
        accuracy(right, 0.95, METRICS["robust_accuracy"]),
        not_measured("robust_accuracy", "gradients are masked"),
    )
    for figures, reason in (((masked, sound), "gradients are masked"), ((sound, masked), "of the champion: gradients")):
        found = share_versus(figures, (right, right), 0.95)
        assert found.value is None
        assert found.champion is None
        assert str(found.reason).startswith(reason)
    absent = not_measured("corruption_ratio", "too few")
    answers = (right, {"fog": right})
    assert ratio_versus((absent, absent), (answers, answers), 0.95, np.random.default_rng(0)).value is None


def test_other_rows_are_refused() -> None:
    right, fewer = np.ones(100, dtype=bool), np.ones(99, dtype=bool)
    with pytest.raises(EvidenceError, match="the champion"):
        shares(right, fewer)
    with pytest.raises(EvidenceError, match="the champion 99"):
        ratio_versus(
            (accuracy(right, 0.95, METRICS["corruption_ratio"]), accuracy(fewer, 0.95, METRICS["corruption_ratio"])),
            ((right, {"fog": right}), (fewer, {"fog": fewer})),
            0.95,
            np.random.default_rng(0),
        )


def test_a_champion_that_knows_no_more_than_the_largest_class_is_no_measure() -> None:
    label = np.arange(400) % 4
    assert unlearnt(label != 0, label, 0.95) is None
    assert "not significantly above 25% from naming the largest class" in str(unlearnt(label == 0, label, 0.95))
    assert "classes in this order" in str(unlearnt(np.zeros(400, dtype=bool), label, 0.95))
    assert unlearnt(np.zeros(0, dtype=bool), np.zeros(0, dtype=int), 0.95) is not None
