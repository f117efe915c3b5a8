"""Groups at one threshold: planted differences are seen, chance ones are not."""

import numpy as np
import pytest

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.disparity import Accusations, accusations, disparity_p_values, holm, vulnerability


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
    values = {m.subject: m.value for m in vulnerability(found, 0.95, "lira")}
    assert values == {"lira: a": 0.5, "lira: b": 0.5}


def test_group_rates_average_to_those_of_all() -> None:
    found = drawn(0, 1.0)
    weights = {"a": 0.6, "b": 0.3, "c": 0.1}
    mean = sum(weights[m.subject] * (m.value or 0.0) for m in vulnerability(found, 0.95))
    assert mean == pytest.approx(found.accused[found.member].mean() - found.accused[~found.member].mean())


def test_a_planted_difference_is_found_and_belongs_to_its_group() -> None:
    p = disparity_p_values(drawn(1, 1.5), 999, np.random.default_rng(0))
    assert p["c"] < 0.01
    found = {m.subject: m for m in vulnerability(drawn(1, 1.5), 0.95)}
    assert (found["c"].low or 0.0) > (found["b"].high or 1.0)


def test_groups_alike_are_told_apart_at_most_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(2)
    rejected = [min(disparity_p_values(drawn(seed, 0.0), 99, rng).values()) <= 0.05 for seed in range(300)]
    assert np.mean(rejected) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_a_group_without_holdout_is_not_measured_and_not_tested() -> None:
    found = accusations(np.arange(3.0), np.arange(20.0), np.array(list("aab")), np.array(["a"] * 20), 0.1)
    absent = vulnerability(found, 0.95)[1]
    assert absent.reason == "needs member and holdout rows, found 1 and 0"
    assert list(disparity_p_values(found, 9, np.random.default_rng(0))) == ["a"]


def test_scores_without_groups_are_refused() -> None:
    with pytest.raises(EvidenceError, match="3 scores and 2 groups"):
        accusations(np.arange(3.0), np.arange(3.0), np.array(["a", "b"]), np.array(["a", "b", "b"]), 0.1)


def test_holm_multiplies_by_the_hypotheses_still_standing_and_never_lowers() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.9])), [0.04, 0.09, 0.09, 0.9])
    assert holm(np.array([0.3])).tolist() == [0.3]
