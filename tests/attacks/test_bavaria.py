"""Empirical Bayes for variances: what it recovers, and what it turns into at both ends."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import invgamma, norm, t

from privacy_gate.attacks.bavaria import MOST_SHAPE, fit_prior, log_predictive, log_student
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.lira import lira_online
from privacy_gate.attacks.moments import Moments, moments
from privacy_gate.metrics.membership import tpr_at_fpr

Plant = Callable[..., MembershipEvidence]


def drawn(rng: np.random.Generator, variance: Any, models: int, rows: int) -> Moments:
    values = rng.normal(size=(models, rows)) * np.sqrt(variance)
    return moments(values, np.ones(values.shape, dtype=bool))


def test_student_density_is_the_textbooks() -> None:
    x = np.linspace(-9, 9, 41)
    np.testing.assert_allclose(
        log_student(x, np.float64(3.5), np.float64(4.0)), t.logpdf(x, 3.5, scale=2.0), rtol=1e-12
    )


@pytest.mark.parametrize(("shape", "rate"), [(2.0, 1.0), (5.0, 20.0)])
@pytest.mark.parametrize("models", [3, 20])
def test_the_prior_that_made_the_variances_is_recovered(shape: float, rate: float, models: int) -> None:
    rng = np.random.default_rng(0)
    side = drawn(rng, invgamma.rvs(shape, scale=rate, size=40_000, random_state=rng), models, 40_000)
    found = fit_prior(side.squares, side.count)
    assert found == (pytest.approx(shape, rel=0.1), pytest.approx(rate, rel=0.1))


def test_equal_variances_give_the_narrowest_prior_and_the_pooled_gaussian() -> None:
    rng = np.random.default_rng(1)
    side = drawn(rng, 9.0, 10, 50_000)
    shape, rate = fit_prior(side.squares, side.count)
    assert shape > 50
    assert rate / shape == pytest.approx(9.0, rel=0.05)
    exact = fit_prior(np.full(100, 9 * 9.0), np.full(100, 10.0))
    assert exact[0] == MOST_SHAPE


def test_many_models_give_each_rows_own_gaussian() -> None:
    rng = np.random.default_rng(2)
    variance = invgamma.rvs(3.0, scale=3.0, size=200, random_state=rng)
    side = drawn(rng, variance, 20_000, 200)
    phi = rng.normal(size=200)
    found = log_predictive(phi, side, np.ones(200, dtype=bool))
    np.testing.assert_allclose(found, norm.logpdf(phi, 0, np.sqrt(variance)), atol=0.1)


@pytest.mark.parametrize(("references", "ahead"), [(16, 0.005), (64, 0.06)])
def test_it_catches_more_than_pooling_if_rows_variances_differ(references: int, ahead: float, plant: Plant) -> None:
    """Rows' variances from one family: the case it is made for."""
    rng = np.random.default_rng(3)
    plain = plant(3, references=references, pool=20_000, population=0)
    scale = np.sqrt(invgamma.rvs(1.5, scale=1.5, size=20_000, random_state=rng))
    evidence = replace(
        plain,
        reference=(rng.normal(size=plain.reference.shape) + 1.5 * plain.included) * scale,
        target=(rng.normal(size=20_000) + 1.5 * plain.member) * scale,
    )
    caught = []
    variances: list[Any] = ["bavaria", "pooled"]
    for variance in variances:
        scores = lira_online(evidence, variance=variance)
        caught.append(tpr_at_fpr(scores[evidence.member], scores[evidence.holdout], 0.01, 0.95).value or 0.0)
    assert caught[0] > caught[1] + ahead
