"""Rates, areas and their intervals: by counting, under ties, and over repeated samples."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.ranks import members_above
from privacy_gate.metrics.membership import auc, balanced_accuracy, precision, precision_at, tpr_at_fpr
from privacy_gate.metrics.rates import needed_holdout
from privacy_gate.verdict.judgement import Measurement

Draw = Callable[[np.random.Generator, int], Floats]
METRICS = [lambda m, h: tpr_at_fpr(m, h, 0.1, 0.95), lambda m, h: auc(m, h, 0.95)]
METRICS += [lambda m, h: balanced_accuracy(m, h, 0.95)]


def normal(seed: int, members: int = 300, holdout: int = 200, shift: float = 1.0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=members) + shift, rng.normal(size=holdout)


def ends(found: Measurement) -> tuple[float, float, float]:
    assert found.low is not None
    assert found.value is not None
    assert found.high is not None
    return found.low, found.value, found.high


def is_close(found: Measurement, other: Measurement) -> bool:
    return np.allclose(ends(found), ends(other), rtol=1e-9)


# --- estimates by counting


@pytest.mark.parametrize(("fpr", "holdout"), [(0.1, 200), (0.1, 105), (0.01, 1000), (0.07, 1000)])
def test_tpr_is_the_share_of_members_above_the_lowest_threshold_that_keeps_the_fpr(fpr: float, holdout: int) -> None:
    member, others = normal(0, holdout=holdout)
    shares = [np.mean(member > cut) for cut in others if np.mean(others > cut) <= fpr]
    assert tpr_at_fpr(member, others, fpr, 0.95).value == pytest.approx(max(shares), abs=1e-12)


def test_tied_scores_count_as_if_ties_were_broken_at_random() -> None:
    """LeakPro's ROC is wrong under ties: .109 instead of .539."""
    rng = np.random.default_rng(1)
    member, holdout = rng.integers(0, 4, 200) + 1.0, rng.integers(0, 4, 100) * 1.0
    broken = [
        tpr_at_fpr(member + rng.uniform(0, 1e-3, 200), holdout + rng.uniform(0, 1e-3, 100), 0.1, 0.95).value
        for _ in range(2000)
    ]
    assert tpr_at_fpr(member, holdout, 0.1, 0.95).value == pytest.approx(np.mean(broken), abs=0.005)


def test_members_tied_above_every_holdout_row_are_all_caught() -> None:
    member, holdout = np.repeat([1.0, 0.0], [539, 461]), np.zeros(1000)
    assert tpr_at_fpr(member, holdout, 0.01, 0.95).value == pytest.approx(0.539 + 0.461 * 11 / 1001)


def test_a_score_that_says_nothing_measures_chance() -> None:
    low, value, high = ends(tpr_at_fpr(np.zeros(1000), np.zeros(1000), 0.1, 0.95))
    assert value == pytest.approx(0.1, abs=0.001)
    assert low < 0.1 < high
    assert auc(np.zeros(9), np.zeros(9), 0.95).value == 0.5
    assert balanced_accuracy(np.zeros(9), np.zeros(9), 0.95).value == 0.5


def test_auc_counts_every_pair_and_half_of_a_tie() -> None:
    rng = np.random.default_rng(2)
    member, holdout = rng.integers(0, 9, 80) + 1.0, rng.integers(0, 9, 70) * 1.0
    pairs = (member[:, None] > holdout) + 0.5 * (member[:, None] == holdout)
    assert auc(member, holdout, 0.95).value == pytest.approx(pairs.mean(), abs=1e-12)


def test_balanced_accuracy_is_that_of_the_best_threshold() -> None:
    rng = np.random.default_rng(3)
    member, holdout = rng.integers(0, 9, 80) + 1.0, rng.integers(0, 9, 70) * 1.0
    best = max((np.mean(member >= cut) + np.mean(holdout < cut)) / 2 for cut in range(12))
    assert balanced_accuracy(member, holdout, 0.95).value == pytest.approx(best, abs=1e-12)


def test_members_above_is_the_mean_over_every_way_to_break_ties() -> None:
    rng = np.random.default_rng(4)
    member, holdout = rng.integers(0, 3, 12) * 1.0, rng.integers(0, 3, 6) * 1.0
    total = np.zeros(8)
    for _ in range(20_000):
        cuts = np.sort(holdout + rng.uniform(0, 0.5, 6))[::-1]
        total += [0, *((member + rng.uniform(0, 0.5, 12))[:, None] > cuts).sum(axis=0), 12]
    np.testing.assert_allclose(members_above(member, holdout), total / 20_000, atol=0.06)


# --- symmetries


@pytest.mark.parametrize("metric", METRICS)
def test_increasing_transformations_change_nothing(metric: Callable[..., Measurement]) -> None:
    member, holdout = normal(5)
    assert is_close(metric(member, holdout), metric(np.exp(3 * member), np.exp(3 * holdout)))


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_rows_changes_nothing(metric: Callable[..., Measurement]) -> None:
    member, holdout = normal(6)
    assert is_close(metric(member, holdout), metric(member[::-1], np.sort(holdout)))


def test_auc_with_sides_changed_is_its_complement() -> None:
    member, holdout = normal(7)
    low, value, high = ends(auc(member, holdout, 0.95))
    np.testing.assert_allclose(ends(auc(holdout, member, 0.95)), (1 - high, 1 - value, 1 - low), rtol=1e-9)


@pytest.mark.parametrize("metric", [auc, balanced_accuracy, lambda m, h, c: tpr_at_fpr(m, h, 0.1, c)])
def test_more_confidence_is_wider_and_more_rows_are_narrower(metric: Callable[..., Measurement]) -> None:
    few, many = normal(8), normal(8, members=9000, holdout=6000)
    widths = [ends(metric(*rows, level)) for rows, level in ((few, 0.99), (few, 0.9), (many, 0.9))]
    assert all(wide[2] - wide[0] > narrow[2] - narrow[0] for wide, narrow in pairwise(widths))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.lists(st.integers(-3, 3), min_size=20, max_size=60),
    st.sampled_from([0.5, 0.9, 0.999]),
)
def test_every_interval_holds_its_estimate_within_zero_and_one(m: list[int], h: list[int], level: float) -> None:
    member, holdout = np.array(m, dtype=float), np.array(h, dtype=float)
    for found in (
        tpr_at_fpr(member, holdout, 0.5, level),
        auc(member, holdout, level),
        balanced_accuracy(member, holdout, level),
    ):
        low, value, high = ends(found)
        assert 0 <= low <= value <= high <= 1
        assert low < high


# --- extremes


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_separation_still_has_an_interval(metric: Callable[..., Measurement]) -> None:
    low, value, high = ends(metric(np.ones(100), np.zeros(100)))
    assert 0.8 < low < 0.99
    assert value == high == 1.0


def test_unresolved_fpr_is_not_measured_and_says_what_it_needs() -> None:
    member, holdout = normal(9)
    found = tpr_at_fpr(member, holdout, 0.01, 0.95, "lira")
    assert (found.metric, found.subject, found.measured) == ("tpr_at_0.01_fpr", "lira", False)
    assert found.reason == "needs n >= 1,000 holdout rows, found 200"


def test_needed_holdout_is_ten_expected_false_positives() -> None:
    assert [needed_holdout(fpr) for fpr in (0.1, 0.01, 0.001, 0.03)] == [100, 1000, 10_000, 334]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_a_score_that_is_no_number_is_refused(metric: Callable[..., object], value: float) -> None:
    member, holdout = normal(10)
    holdout[3] = value
    with pytest.raises(EvidenceError, match="1 of 200 holdout scores are not finite"):
        metric(member, holdout)


def test_no_rows_are_refused() -> None:
    with pytest.raises(EvidenceError, match="member scores have shape"):
        auc(np.empty(0), np.zeros(5), 0.95)


def test_precision_is_bayes_rule() -> None:
    assert precision_at(fpr=0.2, tpr=0.2, prior=0.3) == pytest.approx(0.3)
    assert precision_at(fpr=0.01, tpr=0.1, prior=0.5) == pytest.approx(10 / 11)
    assert precision_at(fpr=0.0, tpr=0.1, prior=0.01) == 1.0
    with pytest.raises(EvidenceError, match="no one is accused"):
        precision_at(fpr=0.0, tpr=0.0, prior=0.5)


# --- coverage: how often an interval at 95 % misses the truth


def mixture(rng: np.random.Generator, size: int) -> Floats:
    """One member in twenty stands far out: what a leak of few examples looks like."""
    return rng.normal(size=size) + 5.0 * (rng.random(size) < 0.05)


def misses(metric: Callable[..., Measurement], truth: float, draw: Draw, n: int, m: int, times: int) -> int:
    rng = np.random.default_rng([n, m, times])
    missed = 0
    for _ in range(times):
        low, _, high = ends(metric(draw(rng, m), rng.normal(size=n)))
        missed += not low <= truth <= high
    return missed


def tpr_misses(n: int, m: int, fpr: float, shift: float | None, times: int) -> int:
    cut = norm.isf(fpr)
    truth = norm.sf(cut - shift) if shift is not None else 0.95 * fpr + 0.05 * norm.sf(cut - 5)
    draw: Draw = mixture if shift is None else lambda rng, size: rng.normal(size=size) + shift
    return misses(lambda a, b: tpr_at_fpr(a, b, fpr, 0.95), truth, draw, n, m, times)


FEW = [
    (200, 50, 0.1, 0.0),
    (200, 1000, 0.1, 1.0),
    (1000, 50, 0.01, None),
    (1000, 200, 0.01, 0.5),
    (1000, 1000, 0.01, 2.0),
    (1000, 1000, 0.01, 0.0),
    (1000, 2000, 0.01, 3.0),
    (10_000, 50, 0.001, None),
    (10_000, 1000, 0.001, 1.0),
]


@pytest.mark.parametrize(("n", "m", "fpr", "shift"), FEW)
def test_tpr_interval_covers_both_errors(n: int, m: int, fpr: float, shift: float | None) -> None:
    times = 300
    assert tpr_misses(n, m, fpr, shift, times) <= binom.ppf(0.99, times, 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, 3.0, None])
@pytest.mark.parametrize(
    ("n", "fpr"), [(200, 0.1), (1000, 0.1), (1000, 0.01), (10_000, 0.1), (10_000, 0.01), (10_000, 0.001)]
)
def test_tpr_interval_covers_to_within_a_point_of_nominal(n: int, fpr: float, shift: float | None) -> None:
    times = 300
    missed = sum(tpr_misses(n, m, fpr, shift, times) for m in (50, 200, 1000))
    assert missed <= 0.06 * 3 * times


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 500), (500, 50)])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, None])
def test_auc_interval_covers(n: int, m: int, shift: float | None) -> None:
    truth = norm.cdf(shift / 2**0.5) if shift is not None else 0.475 + 0.05 * norm.cdf(5 / 2**0.5)
    draw: Draw = mixture if shift is None else lambda rng, size: rng.normal(size=size) + shift
    times = 500
    assert misses(lambda a, b: auc(a, b, 0.95), truth, draw, n, m, times) <= binom.ppf(0.99, times, 0.06)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (50, 500), (500, 50)])
@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0, 3.0])
def test_balanced_accuracy_interval_covers_the_choice_of_the_threshold(n: int, m: int, shift: float) -> None:
    times = 500
    found = misses(
        lambda a, b: balanced_accuracy(a, b, 0.95),
        norm.cdf(shift / 2),
        lambda rng, size: rng.normal(size=size) + shift,
        n,
        m,
        times,
    )
    assert found <= binom.ppf(0.99, times, 0.06)


def test_precision_is_bayes_rule_on_the_measured_rate_and_its_ends() -> None:
    rng = np.random.default_rng(8)
    member, holdout = rng.normal(1.5, 1, 2000), rng.normal(size=2000)
    rate = tpr_at_fpr(member, holdout, 0.01, 0.95)
    for prior in (0.5, 0.1, 0.01):
        found = precision(member, holdout, prior, 0.95, "lira")
        ends = [(found.low, rate.low), (found.value, rate.value), (found.high, rate.high)]
        for shown, tpr in ends:
            assert tpr is not None
            assert shown == pytest.approx(prior * tpr / (prior * tpr + (1 - prior) * 0.01))


def test_precision_is_the_prior_if_nothing_leaks_and_absent_if_the_holdout_is_small() -> None:
    rng = np.random.default_rng(9)
    found = precision(rng.normal(size=20_000), rng.normal(size=20_000), 0.1, 0.99)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.1 <= found.high
    assert precision(rng.normal(size=50), rng.normal(size=999), 0.1, 0.95).reason is not None
