"""Quantile regression: fitted on rows it does not judge, and better than the loss where rows differ."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.quantile import _ridge, hinges, quantile
from privacy_gate.errors import EvidenceError
from privacy_gate.evidence import MembershipEvidence

Plant = Callable[..., MembershipEvidence]
Auc = Callable[..., float]


def test_the_hinge_is_the_margin_over_the_best_other_class(plant: Plant) -> None:
    evidence = replace(plant(0), logits=np.tile([1.0, 4.0, 2.5], (800, 1)), label=np.tile([0, 1, 2, 1], 200))
    assert hinges(evidence)[:4].tolist() == [-3.0, 1.5, -1.5, 1.5]


def test_predictions_of_fitted_rows_are_those_of_a_model_fitted_without_them() -> None:
    rng = np.random.default_rng(0)
    x, fitted = rng.normal(size=(60, 5)), np.arange(60) < 40
    x -= x[fitted].mean(axis=0)
    y = x @ rng.normal(size=5) + rng.normal(size=60)
    found = _ridge(x, y, fitted)
    others = fitted.copy()
    others[3] = False
    # The penalty hardly matters here, so plain least squares without the row is the slow twin.
    design = np.concatenate([x, np.ones((60, 1))], axis=1)
    slow = design[3] @ np.linalg.lstsq(design[others], y[others], rcond=None)[0]
    assert found[3] == pytest.approx(slow, abs=0.03)
    everyone = design @ np.linalg.lstsq(design[fitted], y[fitted], rcond=None)[0]
    np.testing.assert_allclose(found[~fitted], everyone[~fitted], atol=0.1)


def test_it_beats_the_loss_where_features_tell_how_hard_a_row_is(plant: Plant, auc: Auc) -> None:
    gains = []
    for seed in range(5):
        evidence = plant(seed, leak=2.0, pool=1000, population=500)
        areas = [
            auc(scores[evidence.member], scores[evidence.holdout])
            for scores in (ATTACKS["quantile"].score(evidence), ATTACKS["loss"].score(evidence))
        ]
        gains.append(areas[0] - areas[1])
    assert np.mean(gains) > 0.05


def test_no_score_of_the_holdout_enters_the_fit(plant: Plant) -> None:
    """SACRO-ML fits on the non-members it judges: TPR at .1 % FPR is .044 there without any leak."""
    evidence = plant(1, leak=1.0)
    moved = evidence.logits.copy()
    moved[evidence.holdout] *= 3.0
    other = replace(evidence, logits=moved)
    apart = evidence.member | evidence.population
    np.testing.assert_array_equal(quantile(evidence)[apart], quantile(other)[apart])


def test_more_features_than_rows_are_shrunk_not_interpolated(plant: Plant) -> None:
    evidence = plant(2, leak=3.0, pool=600, population=200)
    assert evidence.features is not None
    noise = np.random.default_rng(3).normal(size=(800, 600))
    wide = replace(evidence, features=np.concatenate([evidence.features, noise], axis=1))
    scores = quantile(wide)
    spread = [scores[rows].std() for rows in (evidence.holdout, evidence.population)]
    assert 0.5 < spread[0] / spread[1] < 2.0


def test_what_is_missing_is_named(plant: Plant) -> None:
    with pytest.raises(EvidenceError, match="features"):
        quantile(replace(plant(0), features=None))
    assert "needs >= 200 population rows, found 150" in str(ATTACKS["quantile"].unmet(plant(0, population=150)))
