"""Groups at one threshold: planted differences are seen, chance ones are not."""

import numpy as np
import pytest
from scipy.special import ndtr

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.parties.disparity import (
    Accusations,
    accusations,
    disparity_p_values,
    disparity_tests,
    group_vulnerability,
    holm,
    vulnerability_gap,
)
from privacy_gate.verdict.judgement import Limit, Status, judged_status


def drawn(seed: int, exposed: float, sizes: tuple[int, int, int] = (600, 300, 100)) -> Accusations:
    """Three groups; members of the smallest score higher by `exposed`, all others by 1."""
    rng = np.random.default_rng(seed)
    group = np.repeat(["a", "b", "c"], sizes)
    member = rng.normal(size=len(group)) + 1 + exposed * (group == "c")
    return accusations(member, rng.normal(size=len(group)), group, group, 0.1)


def test_vulnerability_is_the_difference_of_rates_at_the_common_threshold() -> None:
    member, holdout = np.array([9.0, 1.0, 9.0, 9.0]), np.array([0.0, 2.0, 3.0, 4.0])
    group = np.array(["a", "a", "b", "b"])
    found = accusations(member, holdout, group, group, 0.25)
    assert found.accused.tolist() == [True, False, True, True, False, False, False, True]
    values = {m.subject: m.value for m in group_vulnerability(found, 0.95, "lira")}
    assert values == {"lira: a": 0.5, "lira: b": 0.5}


def test_group_rates_average_to_those_of_all() -> None:
    found = drawn(0, 1.0)
    weights = {"a": 0.6, "b": 0.3, "c": 0.1}
    mean = sum(weights[m.subject] * (m.value or 0.0) for m in group_vulnerability(found, 0.95))
    assert mean == pytest.approx(found.accused[found.member].mean() - found.accused[~found.member].mean())


def test_a_planted_difference_is_found_and_belongs_to_its_group() -> None:
    p = disparity_p_values(drawn(1, 1.5), 999, np.random.default_rng(0))
    assert p["c"] < 0.01
    found = {m.subject: m for m in group_vulnerability(drawn(1, 1.5), 0.95)}
    assert (found["c"].low or 0.0) > (found["b"].high or 1.0)


def test_equal_groups_are_distinguished_at_most_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(2)
    rejected = [min(disparity_p_values(drawn(seed, 0.0), 99, rng).values()) <= 0.05 for seed in range(300)]
    assert np.mean(rejected) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_a_group_without_holdout_is_not_measured_and_not_tested() -> None:
    found = accusations(np.arange(3.0), np.arange(20.0), np.array(list("aab")), np.array(["a"] * 20), 0.1)
    absent = group_vulnerability(found, 0.95)[1]
    assert absent.reason == "needs member and holdout rows, found 1 and 0"
    assert list(disparity_p_values(found, 9, np.random.default_rng(0))) == ["a"]


def test_an_exposed_group_without_holdout_rows_is_not_ignored() -> None:
    """Fixed: the gap is no longer that of the other groups, which are alike."""
    seen = drawn(3, 1.5)
    gone = ~seen.member & (seen.group == "c")
    hidden = Accusations(*(each[~gone] for each in (seen.accused, seen.member, seen.group)))
    found = vulnerability_gap(hidden, 0.95, "groups")
    assert found.reason == "needs n >= 1 holdout rows of every group with members: 1 of 3 have none, the first is 'c'"
    assert (found.subject, judged_status(found, Limit(max=1.0))) == ("groups", Status.NOT_MEASURED)
    tested = {one.subject: one.measured for one in disparity_tests(hidden, 99, 0.95, np.random.default_rng(0))}
    assert tested == {"a": True, "b": True, "c": False}


def test_a_group_without_members_has_no_one_to_expose() -> None:
    seen = drawn(3, 0.0)
    gone = seen.member & (seen.group == "c")
    left = Accusations(*(each[~gone] for each in (seen.accused, seen.member, seen.group)))
    assert vulnerability_gap(left, 0.95).measured


def test_scores_without_groups_are_refused() -> None:
    with pytest.raises(EvidenceError, match="3 scores and 2 groups"):
        accusations(np.arange(3.0), np.arange(3.0), np.array(["a", "b"]), np.array(["a", "b", "b"]), 0.1)


def test_holm_multiplies_by_the_hypotheses_still_standing_and_never_lowers() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.9])), [0.04, 0.09, 0.09, 0.9])
    assert holm(np.array([0.3])).tolist() == [0.3]


def normal_rate(shift: float, threshold: float) -> float:
    """P(accused) of a score that is standard normal but for its shift."""
    return float(ndtr(shift - threshold))


@pytest.mark.parametrize("exposed", [0.0, 1.5])
@pytest.mark.parametrize("groups", [2, 12])
def test_the_gap_s_interval_covers_the_largest_true_distance(exposed: float, groups: int) -> None:
    rng, runs, held = np.random.default_rng([4, groups]), 300, 0
    for _ in range(runs):
        group = np.resize(np.array([f"{i:02}" for i in range(groups)]), 1200)
        shift = 0.7 + exposed * (group == "00")
        holdout = rng.normal(size=1200)
        found = accusations(rng.normal(size=1200) + shift, holdout, group, group, 0.1)
        threshold = np.sort(holdout)[::-1][120]
        overall = np.mean([normal_rate(one, threshold) for one in shift])
        truth = max(normal_rate(0.7 + exposed, threshold), normal_rate(0.7, threshold)) - overall
        gap = vulnerability_gap(found, 0.95)
        assert gap.low is not None
        assert gap.high is not None
        held += gap.low - 1e-12 <= truth <= gap.high + 1e-12
    assert held / runs >= 0.95 - 0.01 - 2 * np.sqrt(0.95 * 0.05 / runs)


def test_groups_alike_are_flagged_in_at_most_one_of_twenty_of_200_audits() -> None:
    flagged = {"gap": 0, "p": 0}
    for seed in range(200):
        found = drawn(seed, 0.0)
        gap = vulnerability_gap(found, 0.95)
        flagged["gap"] += gap.low is not None and gap.low > 0
        tests = disparity_tests(found, 199, 0.95, np.random.default_rng(seed))
        flagged["p"] += min(m.high for m in tests if m.high is not None) <= 0.05
    assert max(flagged.values()) / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_an_exposed_group_has_a_gap_above_none() -> None:
    found = drawn(3, 1.5)
    gap, values = vulnerability_gap(found, 0.95), [m.value or 0.0 for m in group_vulnerability(found, 0.95)]
    overall = found.accused[found.member].mean() - found.accused[~found.member].mean()
    assert gap.value == pytest.approx(max(values) - overall)
    assert gap.low is not None
    assert gap.low > 0.1


def test_a_p_value_lies_in_the_interval_of_the_shuffles_and_agrees_with_a_slow_permutation() -> None:
    found, runs = drawn(4, 0.4), 2000
    tests = {m.subject: m for m in disparity_tests(found, runs, 0.99, np.random.default_rng(0), "group")}
    rng = np.random.default_rng(1)

    def gap(group: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        rates = [
            [found.accused[(group == name) & (found.member == side)].mean() for side in (True, False)] for name in "abc"
        ]
        whole = found.accused[found.member].mean() - found.accused[~found.member].mean()
        return np.abs(np.array(rates) @ [1, -1] - whole)

    observed, extreme = gap(found.group), np.ones(3)
    for _ in range(runs):
        shuffled = found.group.copy()
        for side in (True, False):
            shuffled[found.member == side] = rng.permutation(shuffled[found.member == side])
        extreme += gap(shuffled) >= observed - 1e-12
    for name, p in zip("abc", holm(extreme / (runs + 1)), strict=True):
        test = tests[f"group: {name}"]
        assert test.low <= test.value <= test.high  # type: ignore[operator]
        assert test.value == pytest.approx(p, abs=0.06)


def test_one_group_alone_has_no_gap_and_no_test() -> None:
    group = np.full(100, "a")
    found = accusations(np.arange(100.0), np.arange(100.0), group, group, 0.1)
    assert vulnerability_gap(found, 0.95).reason == "needs >= 2 groups with members and holdout, found 1"
    assert [m.measured for m in disparity_tests(found, 99, 0.95, np.random.default_rng(0))] == [False]
