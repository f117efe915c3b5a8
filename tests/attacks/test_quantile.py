"""Quantile regression: fitted on rows it does not judge, and better than the loss where rows differ."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.quantile import PENALTIES, Ridge, hinges, quantile
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.membership import tpr_at_fpr
from privacy_gate.verdict.judgement import Measurement

Plant = Callable[..., MembershipEvidence]
Auc = Callable[..., float]


def test_the_hinge_is_the_margin_over_the_best_other_class(plant: Plant) -> None:
    evidence = replace(plant(0), logits=np.tile([1.0, 4.0, 2.5], (800, 1)), label=np.tile([0, 1, 2, 1], 200))
    assert hinges(evidence)[:4].tolist() == [-3.0, 1.5, -1.5, 1.5]


def slow_ridge(x: Floats, y: Floats, penalty: float) -> tuple[Floats, float]:
    """Weights and intercept; the intercept is not penalised."""
    middle, centre = x.mean(axis=0), float(y.mean())
    apart = x - middle
    weights = np.linalg.solve(apart.T @ apart + penalty * np.eye(x.shape[1]), apart.T @ (y - centre))
    return weights, centre - float(middle @ weights)


@pytest.mark.parametrize("noise", [0.3, 3.0])
@pytest.mark.parametrize("width", [5, 50])
def test_predictions_are_those_of_refitting_without_each_row_for_every_penalty(noise: float, width: int) -> None:
    rng = np.random.default_rng(0)
    x, fitted = rng.normal(size=(60, width)), np.arange(60) < 40
    x -= x[fitted].mean(axis=0)
    y = x @ rng.normal(size=width) + noise * rng.normal(size=60)
    out = np.empty((len(PENALTIES), 40))
    for index, penalty in enumerate(PENALTIES * 40):
        for row in range(40):
            others = fitted & (np.arange(60) != row)
            weights, intercept = slow_ridge(x[others], y[others], penalty)
            out[index, row] = x[row] @ weights + intercept
    best = int(((out - y[:40]) ** 2).sum(axis=1).argmin())
    weights, intercept = slow_ridge(x[fitted], y[fitted], PENALTIES[best] * 40)
    found = Ridge(x, fitted).predict(y)
    np.testing.assert_allclose(found[fitted], out[best], atol=1e-8)
    np.testing.assert_allclose(found[~fitted], x[~fitted] @ weights + intercept, atol=1e-8)


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


def test_fitting_on_the_rows_that_are_scored_shows_a_leak_where_none_is_and_ours_shows_none() -> None:
    """SACRO-ML's mistake, by least squares on the holdout: its own residuals shrink, and members stand out."""
    mistaken: list[Measurement] = []
    ours: list[Measurement] = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        split = np.repeat([Split.MEMBER, Split.HOLDOUT, Split.POPULATION], 500).astype(np.int8)
        x, label = rng.normal(size=(1500, 200)), rng.integers(0, 2, 1500)
        hinge = x @ rng.normal(size=200) / 10 + rng.normal(size=1500)
        logits = np.where(np.arange(2) == label[:, None], hinge[:, None], 0.0)
        evidence = MembershipEvidence(
            target=hinge,
            reference=np.zeros((0, 1500)),
            included=np.zeros((0, 1500), dtype=bool),
            label=label,
            split=split,
            logits=logits,
            features=x,
        )
        own = hinge - x @ np.linalg.lstsq(x[evidence.holdout], hinge[evidence.holdout], rcond=None)[0]
        for rates, scores in ((mistaken, own), (ours, quantile(evidence))):
            rates.append(tpr_at_fpr(scores[evidence.member], scores[evidence.holdout], 0.1, 0.95))
    assert all(rate.low is not None and rate.low > 0.1 for rate in mistaken)
    assert sum(rate.low <= 0.1 <= rate.high for rate in ours if rate.low is not None and rate.high is not None) >= 18


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


def test_scores_of_a_head_that_memorised_its_rows_are_finite(grow: Plant, auc: Auc) -> None:
    """Members' residuals are far from any population row's: a scale that is extrapolated to them overflows."""
    evidence = grow(0, population=400, width=300)
    assert evidence.features is not None
    memorised = replace(evidence, logits=evidence.logits * 300)
    far = replace(memorised, features=np.where(memorised.member[:, None], 1e4, 1.0) * memorised.features)
    for one in (memorised, far):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            scores = quantile(one)
        assert np.isfinite(scores).all()
    scores = quantile(memorised)
    assert auc(scores[evidence.member], scores[evidence.holdout]) > 0.5
