"""RMIA and its kin: a double loop, the order that ties hide, and the formulas of expected probability."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import rankdata

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.rmia import base, informia, log_ratio_offline, log_ratio_online, rmia_offline, rmia_online

Plant = Callable[..., MembershipEvidence]


def naive_ratio(evidence: MembershipEvidence, row: int, a: float, *, online: bool) -> float:
    p = expit(evidence.reference[:, row])
    outside = p[~evidence.included[:, row]].mean()
    expected = ((1 + a) * outside + 1 - a) / 2
    if online:
        expected = (p[evidence.included[:, row]].mean() + outside) / 2
    return float(expit(evidence.target[row]) / expected)


def naive_share(evidence: MembershipEvidence, gamma: float, a: float, *, online: bool) -> Floats:
    population = [naive_ratio(evidence, z, a, online=False) for z in np.flatnonzero(evidence.population)]
    shares = []
    for x in np.flatnonzero(evidence.pool):
        ratio = naive_ratio(evidence, x, a, online=online)
        shares.append(np.mean([ratio / other > gamma for other in population]))
    return np.array(shares)


@pytest.mark.parametrize("gamma", [1.0, 1.3])
@pytest.mark.parametrize(("attack", "online"), [(rmia_online, True), (rmia_offline, False)])
def test_scores_equal_the_double_loop_up_to_the_breaking_of_ties(
    attack: Any, online: bool, gamma: float, plant: Plant
) -> None:
    evidence = plant(0, leak=1.0, references=10, pool=80, population=100)
    found = attack(evidence, gamma=gamma)[evidence.pool]
    share = naive_share(evidence, gamma, 0.3, online=online)
    assert (found > share).all()
    assert (found < share + 1 / 100).all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 100.0])
def test_order_is_that_of_the_ratio_whatever_gamma(gamma: float, plant: Plant) -> None:
    """ml_privacy_meter's scores tie at 1 and its TPR at 1 % FPR is 0: here no two ratios tie."""
    evidence = plant(1, leak=2.0)
    for attack, ratio in (
        (rmia_online, log_ratio_online(evidence)),
        (rmia_offline, log_ratio_offline(evidence, 0.3)),
    ):
        scores = attack(evidence, gamma=gamma)[evidence.pool]
        np.testing.assert_array_equal(rankdata(scores), rankdata(ratio[evidence.pool]))


def test_known_figures_are_reproduced(oracle: Any) -> None:
    found = oracle.figures(rmia_online(oracle.evidence))
    assert found == (pytest.approx(0.630, abs=0.003), pytest.approx(0.070, abs=0.005))


def test_expected_probability_is_the_mean_over_all_references_not_the_largest_half(plant: Plant) -> None:
    """ml_privacy_meter averages the largest half of the references' probabilities."""
    evidence = plant(2, references=2, pool=50, population=100)
    p = expit(evidence.reference)[:, evidence.pool]
    np.testing.assert_allclose(
        log_ratio_online(evidence)[evidence.pool],
        np.log(expit(evidence.target[evidence.pool]) / p.mean(axis=0)),
        rtol=1e-9,
        atol=1e-12,
    )


def test_expected_probability_does_not_depend_on_how_many_references_saw_the_row(plant: Plant) -> None:
    evidence = plant(3, leak=1.0, references=40, inclusion=0.1)
    inside = np.where(evidence.included, 2.0, -1.0)
    even = replace(evidence, reference=inside, target=np.zeros_like(evidence.target))
    expected = np.log(0.5 / ((expit(2.0) + expit(-1.0)) / 2))
    np.testing.assert_allclose(log_ratio_online(even)[evidence.pool], expected, rtol=1e-9)


def test_base_orders_rows_as_rmia_does_when_half_the_references_saw_each(oracle: Any) -> None:
    evidence = oracle.evidence
    ours, theirs = base(evidence)[evidence.pool], rmia_online(evidence)[evidence.pool]
    assert oracle.figures(ours)[0] == pytest.approx(oracle.figures(theirs)[0], abs=1e-12)


def test_informia_is_the_log_ratio_against_the_populations_mean(plant: Plant) -> None:
    evidence = plant(4, leak=1.0, references=10, pool=40, population=100)
    population = [np.log(naive_ratio(evidence, z, 0.3, online=False)) for z in np.flatnonzero(evidence.population)]
    expected = [np.log(naive_ratio(evidence, x, 0.3, online=True)) for x in np.flatnonzero(evidence.pool)]
    np.testing.assert_allclose(informia(evidence)[evidence.pool], np.array(expected) - np.mean(population), rtol=1e-9)


def test_probabilities_that_underflow_everywhere_give_finite_scores(plant: Plant) -> None:
    evidence = plant(5, shift=-5000.0)
    for attack in (rmia_online, rmia_offline, base, informia):
        assert np.isfinite(attack(evidence)[evidence.pool]).all()


@pytest.mark.parametrize("attack", [rmia_online, rmia_offline, base, informia])
def test_a_leak_is_seen_if_probabilities_are_too_small_for_floats(attack: Any, plant: Plant, auc: Any) -> None:
    """Near -900 nats every probability is 0 in float64: means of those that are not in logarithms tie at .5."""
    evidence = plant(6, leak=3.0, shift=-900.0)
    rest = plant(6, leak=3.0, shift=-30.0)  # the same draws: here float64 holds them
    areas = []
    for one in (evidence, rest):
        scores = attack(one)
        assert np.isfinite(scores[one.pool]).all()
        areas.append(auc(scores[one.member], scores[one.holdout]))
    assert areas[0] == pytest.approx(areas[1], abs=1e-6)
    if attack is not rmia_offline:  # whose a allows for probabilities of 1 - a, and so ranks by the loss here
        assert areas[0] > 0.9
