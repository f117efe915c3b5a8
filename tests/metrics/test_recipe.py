"""The recipe's leak: intervals that cover models and rows, closed forms, no leak."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from privacy_gate.arrays import Bools, Floats
from privacy_gate.metrics.recipe import calibrated_tpr, clustered_tpr, median_tpr, recipe_tpr, row_rates


def models(rng: np.random.Generator, count: int, rows: int, shift: float, spread: float = 0.0) -> tuple[Floats, Bools]:
    """phi of `count` models on `rows` rows: each row has its own mean, members are `shift` surer."""
    included = np.array([rng.permutation(rows) < rows // 2 for _ in range(count)])
    own = rng.normal(0, 3, rows)
    gain = shift * np.exp(spread * rng.normal(size=rows))
    return own + rng.normal(size=(count, rows)) + gain * included, included


def test_a_planted_leak_is_measured_at_its_closed_form() -> None:
    phi, included = models(np.random.default_rng(0), 128, 2000, shift=2.0)
    truth = float(ndtr(ndtri(0.01) + 2.0))
    for found in (recipe_tpr(phi, included, 0.01, 0.95), calibrated_tpr(phi, included, 0.01, 0.95)):
        assert found.value == pytest.approx(truth, abs=0.035)  # estimated moments cost LiRA a little


def test_without_a_leak_the_rate_is_the_false_positive_rate() -> None:
    phi, included = models(np.random.default_rng(1), 64, 1000, shift=0.0)
    found = recipe_tpr(phi, included, 0.1, 0.95)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.1 <= found.high < 0.13


def test_a_row_s_own_rate_is_lemma_1() -> None:
    rng = np.random.default_rng(2)
    included = np.zeros((4000, 3), bool)
    included[:2000] = True
    phi = rng.normal(size=(4000, 3)) * np.where(included, 2.0, 1.0) + np.where(included, [0.0, 1.0, 3.0], 0.0)
    truth = ndtr((np.array([0.0, 1.0, 3.0]) - ndtri(0.9)) / 2.0)
    np.testing.assert_allclose(row_rates(phi, included, 0.1), truth, atol=0.03)


def clustered_scores(rng: np.random.Generator, count: int, rows: int, effect: float) -> tuple[Floats, Bools]:
    """Scores with a random effect of each model and each row: dependent, as real ones are."""
    included = rng.random((count, rows)) < 0.5
    scores = (
        np.sqrt(1 - 2 * effect**2) * rng.normal(size=(count, rows))
        + effect * rng.normal(size=(count, 1))
        + effect * rng.normal(size=(1, rows))
    )
    return scores + 1.0 * included, included


@pytest.mark.parametrize(("effect", "fpr"), [(0.0, 0.1), (0.3, 0.1), (0.3, 0.01)])
def test_the_interval_covers_models_and_rows(effect: float, fpr: float) -> None:
    rng = np.random.default_rng([3, int(effect * 10), int(1000 * fpr)])
    truth = float(ndtr(ndtri(fpr) + 1.0))  # over all models and rows a score is standard normal
    runs = 200
    held = 0
    for _ in range(runs):
        scores, included = clustered_scores(rng, 40, 1000, effect)
        found = clustered_tpr(scores, included, fpr, 0.95, "")
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held / runs >= 0.95 - 0.01 - 2 * np.sqrt(0.95 * 0.05 / runs)


def test_the_calibrated_interval_covers_the_mean_over_rows() -> None:
    rng = np.random.default_rng(4)
    truth = float(ndtr(ndtri(0.1) + 1.5))
    held = 0
    for _ in range(100):
        phi, included = models(rng, 64, 300, shift=1.5)
        found = calibrated_tpr(phi, included, 0.1, 0.95)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 90


def test_too_few_rows_or_models_are_not_measured() -> None:
    phi, included = models(np.random.default_rng(5), 64, 90, shift=1.0)
    assert "needs n >= 100" in str(recipe_tpr(phi, included, 0.1, 0.95).reason)
    phi, included = models(np.random.default_rng(6), 4, 200, shift=1.0)
    assert calibrated_tpr(phi, included, 0.1, 0.95).reason is not None


def test_the_median_model_s_rate_is_that_of_a_naive_loop_and_its_interval_covers() -> None:
    rng, held, runs = np.random.default_rng(5), 0, 100
    for run in range(runs):
        included = rng.random((41, 2400)) < 0.5
        strength = rng.permutation(
            np.linspace(0.5, 1.5, 41) + rng.normal(0, 0.1)
        )  # models differ; the median is near 1
        scores = rng.normal(size=included.shape) + strength[:, None] * included
        found = median_tpr(scores, included, 0.1, 0.9, "lira")
        assert found.low is not None
        assert found.high is not None
        held += found.low <= ndtr(ndtri(0.1) + 1.0) <= found.high
        if run == 0:
            rates = [
                (own[chosen] > np.sort(own[~chosen])[::-1][int(0.1 * (~chosen).sum())]).mean()
                for own, chosen in zip(scores, included, strict=True)
            ]
            assert found.value == pytest.approx(np.median(rates))
    assert held >= 0.8 * runs


def test_a_median_that_cannot_be_had_says_why() -> None:
    rng = np.random.default_rng(6)
    included = rng.random((5, 400)) < 0.5
    few_models = median_tpr(rng.normal(size=included.shape), included, 0.1, 0.95, "lira")
    assert few_models.reason == "needs more than 5 models for an interval of the median"
    few_rows = median_tpr(rng.normal(size=included.shape), included, 0.01, 0.95, "lira")
    assert "needs n >= 1,000 rows outside" in str(few_rows.reason)
