"""LiRA: released code's scores, a slow twin, closed forms, and what we do otherwise on purpose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.lira import lira_offline, lira_online
from privacy_gate.attacks.moments import moments
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.membership import tpr_at_fpr

Plant = Callable[..., MembershipEvidence]


def naive_online(evidence: MembershipEvidence, variance: str, centre: str) -> Floats:
    """Row by row, as the paper tells it."""
    middle = np.mean if centre == "mean" else np.median
    residuals: dict[bool, list[float]] = {True: [], False: []}
    freedom = {True: 0, False: 0}
    for row in np.flatnonzero(evidence.pool):
        for side in (True, False):
            values = evidence.reference[evidence.included[:, row] == side, row]
            residuals[side] += list(values - np.mean(values))
            freedom[side] += len(values) - 1
    scores = np.full(len(evidence.target), np.nan)
    for row in np.flatnonzero(evidence.pool):
        density = {}
        for side in (True, False):
            values = evidence.reference[evidence.included[:, row] == side, row]
            pooled = np.sqrt(np.sum(np.square(residuals[side])) / freedom[side])
            deviation = np.std(values) if variance == "per_example" else pooled
            density[side] = norm.logpdf(evidence.target[row], middle(values), deviation)
        scores[row] = density[True] - density[False]
    return scores


@pytest.mark.parametrize("models", [16, 64])
def test_online_scores_equal_released_code_with_its_median_centre(models: int, oracle: Any) -> None:
    evidence = oracle.evidence
    some = replace(evidence, reference=evidence.reference[:models], included=evidence.included[:models])
    scores = lira_online(some, variance="per_example", centre="median")[evidence.pool]
    np.testing.assert_allclose(scores, oracle.online[models], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("attack", "variance", "area", "caught"),
    [
        (lira_online, "per_example", 0.628, 0.063),
        (lira_online, "pooled", 0.616, 0.057),
        (lira_offline, "per_example", 0.594, 0.030),
    ],
)
def test_known_figures_are_reproduced(attack: Any, variance: str, area: float, caught: float, oracle: Any) -> None:
    found = oracle.figures(attack(oracle.evidence, variance=variance, centre="median"))
    assert found == (pytest.approx(area, abs=0.003), pytest.approx(caught, abs=0.005))


def test_offline_is_one_sided_where_released_code_is_two_sided(oracle: Any) -> None:
    """The two-sided score of Google's code ranks non-members first: AUC .476 on these logits."""
    assert oracle.figures(oracle.offline)[0] < 0.5 < oracle.figures(lira_offline(oracle.evidence))[0]


def test_a_row_known_far_worse_than_without_it_is_the_least_likely_member(plant: Plant) -> None:
    evidence = plant(0, leak=1.0)
    target = evidence.target.copy()
    target[0] = evidence.reference[:, 0].min() - 50
    scores = lira_offline(replace(evidence, target=target))
    assert np.argmin(scores) == 0


@pytest.mark.parametrize("variance", ["per_example", "pooled"])
@pytest.mark.parametrize("centre", ["mean", "median"])
def test_online_equals_the_loop_over_rows(variance: Any, centre: Any, plant: Plant) -> None:
    evidence = plant(1, leak=1.0, references=12, pool=60, population=5)
    found = lira_online(evidence, variance=variance, centre=centre)
    np.testing.assert_allclose(found, naive_online(evidence, variance, centre), rtol=1e-10)


@pytest.mark.parametrize("variance", ["pooled", "per_example", "bavaria"])
def test_online_does_not_depend_on_the_unit_or_origin_of_phi(variance: Any, plant: Plant) -> None:
    evidence = plant(2, leak=1.0, references=48)
    other = replace(evidence, target=3 * evidence.target - 7, reference=3 * evidence.reference - 7)
    np.testing.assert_allclose(
        lira_online(other, variance=variance), lira_online(evidence, variance=variance), rtol=1e-7, atol=1e-9
    )


def test_offline_does_not_depend_on_the_unit_or_origin_of_phi(plant: Plant) -> None:
    evidence = plant(2, leak=1.0)
    other = replace(evidence, target=3 * evidence.target - 7, reference=3 * evidence.reference - 7)
    np.testing.assert_allclose(lira_offline(other), lira_offline(evidence), rtol=1e-9)


def test_offline_never_looks_at_models_trained_with_the_row(plant: Plant) -> None:
    evidence = plant(3, leak=1.0)
    other = replace(evidence, reference=np.where(evidence.included, 1e3, evidence.reference))
    np.testing.assert_array_equal(lira_offline(other), lira_offline(evidence))


def test_true_positive_rate_is_that_of_two_known_gaussians(plant: Plant) -> None:
    """arXiv 2402.06674, lemma 1: tpr = Phi(Phi^-1(fpr) + (mu_in - mu_out) / sigma)."""
    evidence = plant(4, leak=2.0, references=200, pool=6000)
    scores = lira_online(evidence)
    for fpr in (0.1, 0.01):
        found = tpr_at_fpr(scores[evidence.member], scores[evidence.holdout], fpr, 0.99)
        assert found.low is not None
        assert found.high is not None
        assert found.low < norm.cdf(norm.ppf(fpr) + 2.0) < found.high


def test_auto_trusts_a_rows_own_variance_from_32_models_on_each_side(plant: Plant) -> None:
    few, many = plant(5, leak=1.0, references=40), plant(5, leak=1.0, references=160)
    assert moments(many.reference, many.included).count[many.pool].min() >= 32
    np.testing.assert_array_equal(lira_online(few), lira_online(few, variance="pooled"))
    np.testing.assert_array_equal(lira_online(many), lira_online(many, variance="per_example"))
    np.testing.assert_array_equal(lira_offline(few), lira_offline(few, variance="pooled"))
    np.testing.assert_array_equal(lira_offline(many), lira_offline(many, variance="per_example"))


def test_pooled_variance_is_unbiased_however_few_models_saw_a_row() -> None:
    rng = np.random.default_rng(0)
    values, chosen = rng.normal(scale=2.0, size=(64, 20_000)), rng.random((64, 20_000)) < 0.03
    side = moments(values, chosen)
    assert np.median(side.count) <= 2
    pooled = side.squares.sum() / np.maximum(side.count - 1, 0).sum()
    assert pooled == pytest.approx(4.0, rel=0.03)


def test_models_that_agree_to_the_last_digit_give_finite_scores(plant: Plant) -> None:
    evidence = plant(6, references=40)
    same = replace(evidence, reference=np.zeros_like(evidence.reference))
    for variance in ("pooled", "per_example", "bavaria"):
        assert np.isfinite(lira_online(same, variance=variance)[same.pool]).all()


@pytest.mark.parametrize("variance", ["pooled", "bavaria"])
def test_no_row_seen_twice_is_refused(variance: Any, plant: Plant) -> None:
    evidence = plant(7, references=8)
    once = np.zeros_like(evidence.included)
    once[0] = evidence.pool
    with pytest.raises(EvidenceError, match="two models on the same side"):
        lira_online(replace(evidence, included=once), variance=variance)
