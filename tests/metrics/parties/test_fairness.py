"""Fairness beyond chance: clients alike give nothing, a planted unfair one is found, peers agree."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.parties.disparity import Accusations
from privacy_gate.metrics.parties.fairness import (
    EVENNESS,
    chance_gaps,
    client_std,
    decile_gap,
    evenness,
    gini,
    jain,
    relative_entropy,
    worst_decile_gap,
)
from privacy_gate.metrics.parties.groups import disparate_mia, equalized_odds, gap_parts, group_gap
from privacy_gate.verdict.judgement import Measurement

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "data" / "fairlearn_parity.json").read_text())[
    "cases"
]
ROWS = np.full(20, 100)


def ends(found: Measurement) -> tuple[float, float, float]:
    assert found.low is not None
    assert found.value is not None
    assert found.high is not None
    return found.low, found.value, found.high


def alike(seed: int, clients: int = 20, rows: int = 100, accuracy: float = 0.9) -> np.ndarray:
    return np.random.default_rng(seed).binomial(rows, accuracy, clients)


@pytest.mark.parametrize("measure", [client_std, worst_decile_gap])
def test_clients_alike_have_0_within_the_interval_as_often_as_it_says(measure: Any) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(20):
        low, _, high = ends(measure(alike(seed), ROWS, 0.95, rng))
        covered.append(low <= 1e-12 and high >= 0)
    assert np.mean(covered) >= 0.9


@pytest.mark.parametrize(("measure", "limit"), [(client_std, 0.10), (worst_decile_gap, 0.20)])
def test_clients_alike_on_enough_rows_are_within_the_proposed_limits(measure: Any, limit: float) -> None:
    """An interval that always holds 0 is worth nothing if it always holds the limit too."""
    rng = np.random.default_rng(0)
    for seed in range(5):
        assert ends(measure(alike(seed), ROWS, 0.95, rng))[2] < limit


def test_a_few_rows_all_right_prove_little() -> None:
    rng = np.random.default_rng(0)
    assert ends(client_std(np.full(5, 10), np.full(5, 10), 0.95, rng))[2] > 0.05
    label, group = np.tile([0, 1], 10), np.repeat([0, 1], 10)
    assert ends(equalized_odds(label, label, group, 0.95, rng))[2] > 0.2


def test_the_noise_of_clients_alike_is_the_known_one() -> None:
    """20 clients with 100 rows each and accuracy .9: a gap of 5.1 points on average, 7.3 in one of twenty."""
    gaps = chance_gaps(0.9, ROWS, np.random.default_rng(0))
    assert gaps.mean() == pytest.approx(0.051, abs=0.002)
    assert np.quantile(gaps, 0.95) == pytest.approx(0.073, abs=0.003)
    drawn = np.random.default_rng(1).binomial(100, 0.9, (20_000, 20)) / 100
    assert np.quantile(np.ptp(drawn, axis=1), 0.95) == pytest.approx(0.15, abs=0.011)
    found = [ends(worst_decile_gap(alike(seed), ROWS, 0.95, np.random.default_rng(0)))[1] for seed in range(15)]
    assert np.mean(found) == pytest.approx(0, abs=0.01)


def test_equalized_odds_of_groups_alike_is_noise_of_the_known_size() -> None:
    """100 positives a group: .09 in one of twenty, and 0 within the interval."""
    rng, values, covered = np.random.default_rng(0), [], 0
    label, group = np.tile(np.repeat([0, 1], 100), 2), np.repeat([0, 1], 200)
    for seed in range(200):
        predicted = np.where(rng.random(400) < 0.1, 1 - label, label)
        if seed < 30:
            low, _, _ = ends(equalized_odds(predicted, label, group, 0.95, rng))
            covered += low == 0
        rates = np.array([[(predicted[(group == g) & (label == c)] == 1).mean() for c in (0, 1)] for g in (0, 1)])
        values.append(np.abs(rates[0] - rates[1]).max())
    assert np.quantile(values, 0.95) == pytest.approx(0.09, abs=0.02)
    assert covered >= 27


def test_a_planted_unfair_client_is_found() -> None:
    correct = alike(3)
    correct[7] = 40
    rng = np.random.default_rng(0)
    low, value, high = ends(client_std(correct, ROWS, 0.95, rng))
    assert low > 0.03
    assert value == pytest.approx(np.std(np.append(np.full(19, 0.9), 0.4), ddof=1), abs=0.025)
    assert low < value < high
    low, value, _ = ends(worst_decile_gap(correct, ROWS, 0.95, rng))
    assert low > 0.1
    assert value > 0.18


def test_a_planted_spread_is_within_the_interval() -> None:
    rng, covered, values = np.random.default_rng(0), 0, []
    for _ in range(25):
        correct = rng.binomial(100, rng.beta(14.4, 3.6, 20))  # mean .8, standard deviation .0918
        low, value, high = ends(client_std(correct, ROWS, 0.95, rng))
        covered += low <= 0.0918 <= high
        values.append(value)
    assert covered >= 22
    assert np.mean(values) == pytest.approx(0.0918, abs=0.012)


def test_the_worst_tenth_of_fewer_than_ten_clients_is_the_worst_client() -> None:
    """Taking int(.1 K) of them takes none, whose mean is not a number."""
    assert decile_gap(np.array([0.9, 0.6, 0.9])) == pytest.approx(0.2)
    assert decile_gap(np.arange(20) / 20) == pytest.approx(0.475 - 0.025)
    for clients in (2, 9, 10, 11):
        assert np.isfinite(
            ends(worst_decile_gap(alike(0, clients), np.full(clients, 100), 0.9, np.random.default_rng(0)))[1]
        )


@pytest.mark.parametrize("case", CASES, ids=["two groups", "four groups"])
def test_group_metrics_agree_with_fairlearn(case: dict[str, Any]) -> None:
    group, label, predicted = (np.array(case[name]) for name in ("group", "label", "predicted"))
    found = group_gap(predicted == label, group, 0.95)
    assert found.value == pytest.approx(case["accuracy_difference"], rel=1e-12)
    odds = equalized_odds(predicted, label, group, 0.95, np.random.default_rng(0))
    assert odds.value == pytest.approx(case["equalized_odds_difference"], rel=1e-12)


def test_equalized_odds_of_many_classes_is_the_mean_of_each_against_the_rest() -> None:
    rng = np.random.default_rng(4)
    label, group = rng.integers(0, 5, 600), rng.integers(0, 3, 600)
    predicted = np.where(rng.random(600) < 0.3, rng.integers(0, 5, 600), label)
    by_hand = []
    for c in range(5):
        rates = [
            [(predicted[(group == g) & (label == c)] == c).mean(), (predicted[(group == g) & (label != c)] == c).mean()]
            for g in range(3)
        ]
        by_hand.append(np.ptp(np.array(rates), axis=0).max())
    found = equalized_odds(predicted, label, group, 0.95, rng)
    assert found.value == pytest.approx(np.mean(by_hand), rel=1e-12)


def test_false_alarms_of_a_group_without_a_class_count_as_misses_in_its_own_classes() -> None:
    """One group has no rows of class 2 and is predicted as class 2: this counts as misses in its own class."""
    rng, label = np.random.default_rng(3), np.tile([0, 1, 2], 200)
    group = np.where((label == 2) | (rng.random(600) < 0.5), "f", "m")
    predicted = np.where((group == "m") & (label == 1), 2, label)
    assert ends(equalized_odds(label, label, group, 0.95, rng))[1] == 0
    # Only f has class 1, both have class 0; f's rows of class 2 are compared with no other group.
    assert ends(equalized_odds(predicted, label, group, 0.95, rng))[1] == pytest.approx(1 / 2)


def test_a_group_gap_covers_the_true_one_and_a_planted_one_is_found() -> None:
    rng, covered = np.random.default_rng(0), 0
    group = np.repeat([0, 1, 2], 300)
    truth = np.array([0.9, 0.9, 0.75])[group]
    for _ in range(200):
        low, _, high = ends(group_gap(rng.random(900) < truth, group, 0.95))
        covered += low <= 0.15 <= high
    assert covered >= 190
    low, _, _ = ends(group_gap(rng.random(9000) < np.repeat(truth, 10), np.repeat(group, 10), 0.95))
    assert low > 0.1
    same = rng.random(900) < 0.9
    assert ends(group_gap(same, group, 0.95))[0] == 0


@pytest.mark.parametrize(("classes", "rows", "shares"), [(2, 10, (0.99, 0.96)), (10, 40, (0.95, 0.9))])
def test_equalized_odds_covers_the_true_gap_if_errors_are_few(
    classes: int, rows: int, shares: tuple[float, float]
) -> None:
    """A bootstrap of predictions does not: if no row is wrong, no resampled row is."""
    rng, covered, runs = np.random.default_rng(0), 0, 40
    label, group = np.tile(np.repeat(np.arange(classes), rows), 2), np.repeat([0, 1], rows * classes)
    for _ in range(runs):
        wrong = rng.random(len(label)) > np.array(shares)[group]
        predicted = np.where(wrong, (label + rng.integers(1, classes, len(label))) % classes, label)
        low, _, high = ends(equalized_odds(predicted, label, group, 0.95, rng))
        covered += low <= shares[0] - shares[1] <= high
    assert covered >= 0.93 * runs


def accused(rng: np.random.Generator, extra: float) -> Accusations:
    """600 members and 300 holdout rows of three groups; members of one are accused more often by `extra`."""
    group = rng.choice(["a", "b", "c"], 900)
    member = np.arange(900) < 600
    return Accusations(rng.random(900) < 0.05 + extra * (member & (group == "a")), member, group)


def test_groups_whose_members_are_equally_accused_give_no_small_p_and_a_planted_one_does() -> None:
    rng = np.random.default_rng(0)
    nothing = [disparate_mia(accused(rng, 0), 199, 0.95, rng) for _ in range(100)]
    assert sum(ends(gap)[0] == 0 for gap, _ in nothing) >= 95
    assert sum(ends(p)[1] <= 0.05 for _, p in nothing) <= 11
    gap, p = disparate_mia(accused(rng, 0.25), 1999, 0.95, rng)
    low, value, _ = ends(gap)
    assert low > 0.1
    assert value == pytest.approx(0.25, abs=0.08)
    assert ends(p)[2] < 0.01


def test_the_p_value_of_groups_alike_is_as_small_as_chance_allows_and_no_smaller() -> None:
    rng, runs = np.random.default_rng(1), 400
    p = np.array([ends(disparate_mia(accused(rng, 0), 199, 0.95, rng)[1])[1] for _ in range(runs)])
    for level in (0.01, 0.05, 0.1, 0.25, 0.5):
        share, error = (p <= level).mean(), np.sqrt(level * (1 - level) / runs)
        assert level - 4 * error - 0.1 * level <= share <= level + 3 * error


@pytest.mark.parametrize(("groups", "rows"), [(2, 40), (3, 15), (9, 30), (40, 60)])
def test_few_groups_of_few_rows_and_many_groups_have_0_within_the_interval_and_no_nan(groups: int, rows: int) -> None:
    rng, quiet = np.random.default_rng(2), 0
    group = np.repeat(np.arange(groups), rows).astype(np.str_)
    for _ in range(100):
        found = Accusations(rng.random(len(group)) < 0.05, np.ones(len(group), dtype=bool), group)
        gap, p = disparate_mia(found, 99, 0.95, rng, "clients")
        assert np.isfinite([*ends(gap), *ends(p)]).all()
        assert gap.subject == p.subject == "clients"
        quiet += ends(gap)[0] == 0
    assert quiet >= 95


def test_the_largest_gap_s_interval_is_the_widest_of_all_pairs() -> None:
    rng = np.random.default_rng(3)
    group = rng.choice(["a", "b", "c", "d"], 400, p=[0.1, 0.2, 0.3, 0.4])
    hit = rng.random(400) < 0.3
    low = high = 0.0
    sides = {name: hit[group == name] for name in "abcd"}
    rates = {name: clopper_pearson(int(side.sum()), len(side), 1 - 0.05 / 6) for name, side in sides.items()}
    for one, other in itertools.permutations("abcd", 2):
        a, b = sides[one].mean(), sides[other].mean()
        if a >= b:
            low = max(low, a - b - np.hypot(a - rates[one][0], rates[other][1] - b))
            high = max(high, a - b + np.hypot(rates[one][1] - a, b - rates[other][0]))
    assert ends(group_gap(hit, group, 0.95))[::2] == pytest.approx((low, high))


def test_parts_of_a_gap_add_up_to_it_and_cover_the_true_ones() -> None:
    rng, runs, group = np.random.default_rng(4), 200, np.repeat(["f", "m"], 500)
    truth, covered = {"backbone": 0.05, "training": 0.1, "federation": -0.03}, np.zeros(3)
    for _ in range(runs):
        ease, right, lack = rng.random(1000), {}, 0.0
        for name, part in truth.items():
            lack += part
            # A model agrees with the one before it on most rows, as models that stand on each other do.
            ease = np.where(rng.random(1000) < 0.8, ease, rng.random(1000))
            right[name] = ease < 0.8 - lack * (group == "f")
        parts = gap_parts(right, group, 0.95)
        assert [part.subject for part in parts] == list(truth)
        assert sum(part.value or 0 for part in parts) == pytest.approx(
            right["federation"][group == "m"].mean() - right["federation"][group == "f"].mean()
        )
        covered += [low <= true <= high for (low, _, high), true in zip(map(ends, parts), truth.values(), strict=True)]
    assert (covered / runs >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / runs)).all()


def test_models_that_are_the_same_add_nothing_and_one_group_has_no_parts() -> None:
    right, group = np.arange(100) % 3 > 0, np.repeat(["f", "m"], 50)
    _, added = gap_parts({"backbone": right, "training": right}, group, 0.95)
    assert ends(added)[1] == 0
    assert gap_parts({"backbone": right}, np.full(100, "f"), 0.95) == []


def test_disparate_mia_is_the_gap_of_true_positive_rates_and_ignores_the_holdout() -> None:
    member = np.array([True] * 6 + [False] * 4)
    group = np.array(["a", "a", "a", "b", "b", "b", "a", "a", "b", "b"])
    hit = np.array([True, True, False, True, False, False, True, True, False, False])
    gap, p = disparate_mia(Accusations(hit, member, group), 99, 0.95, np.random.default_rng(0))
    assert gap.value == pytest.approx(1 / 3)
    assert p.value == 1.0
    alone = disparate_mia(Accusations(hit, member, np.full(10, "a")), 99, 0.95, np.random.default_rng(0))
    assert [each.reason for each in alone] == ["needs >= 2 groups, found 1"] * 2


def test_indices_of_evenness_are_their_definitions() -> None:
    x = np.array([0.9, 0.6, 0.3])
    assert jain(x) == pytest.approx(1 / (1 + (x.std() / x.mean()) ** 2))
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))
    share = x / x.sum()
    assert relative_entropy(x) == pytest.approx(-(share * np.log(share)).sum() / np.log(3))
    same = np.full(5, 0.7)
    assert [jain(same), gini(same), relative_entropy(same)] == pytest.approx([1, 0, 1])
    found = evenness(alike(0), ROWS, 0.95, np.random.default_rng(0))
    assert [each.metric for each in found] == list(EVENNESS)
    for each in found:
        ends(each)


def test_jain_hardly_changes_if_the_worst_client_is_ruined() -> None:
    """Which is why it gates nothing."""
    accuracy = np.full(20, 0.9)
    accuracy[0] = 0.4
    assert jain(accuracy) > 0.98
    assert decile_gap(accuracy) > 0.2


def test_the_same_seed_gives_the_same_interval() -> None:
    for measure in (client_std, worst_decile_gap):
        first, again = (measure(alike(0), ROWS, 0.95, np.random.default_rng(1)) for _ in range(2))
        assert first == again


def test_what_cannot_be_measured_says_why() -> None:
    rng = np.random.default_rng(0)
    one = np.array([1])
    assert "found 1 clients" in str(client_std(one, one + 9, 0.95, rng).reason)
    assert "the smallest with 1" in str(worst_decile_gap(np.array([1, 5]), np.array([1, 9]), 0.95, rng).reason)
    assert "needs >= 2 groups" in str(group_gap(np.array([True]), np.array(["a"]), 0.95).reason)
    alone = equalized_odds(np.array([0, 1]), np.array([0, 1]), np.array(["a", "b"]), 0.95, rng)
    assert "two groups have both positives and negatives" in str(alone.reason)
    with pytest.raises(EvidenceError, match="0 <= right <= rows"):
        client_std(np.array([5, 5]), np.array([4, 9]), 0.95, rng)
