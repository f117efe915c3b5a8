"""The simplified model of arXiv 2402.06674: nearest class mean, whose leak has a closed form.

A class has mean m and covariance Sigma; the model keeps the mean of its S examples and says <x, mean> of x. With x
among them the score is larger by <x, x - m> / S in expectation, and it deviates by sqrt(x' Sigma x / S), so that
tpr(x) = Phi(Phi^-1(fpr) + d(x) / sqrt(S)), d(x) = <x, x - m> / sqrt(x' Sigma x), for large S. For any S the variance
with x is smaller by the factor 1 - 1/S, since x itself does not vary: the argument is divided by sqrt(1 - 1/S).
"""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.leave_one_out import lira_every_model
from privacy_gate.metrics.power_law import SLOPES, Point, fit
from privacy_gate.metrics.recipe import row_rates
from privacy_gate.verdict.judgement import Measurement

WIDTH = 16
MODELS = 20_000
ROWS = 60


@dataclass(frozen=True)
class World:
    """Mean (D,) and a square root of the covariance (D, D) of the class; rows (N, D) drawn from it; d (N,)."""

    mean: Floats
    root: Floats
    x: Floats
    d: Floats


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=WIDTH), rng.normal(size=(WIDTH, WIDTH)) / 4
    x = mean + rng.normal(size=(ROWS, WIDTH)) @ root.T
    d = (x * (x - mean)).sum(axis=1) / np.linalg.norm(x @ root, axis=1)
    return World(mean, root, x, d)


def fresh(world: World, shots: int, models: int, seed: int) -> tuple[Floats, Bools]:
    """Scores and training sets (models, N): each model's examples are drawn anew, x takes the last one's place."""
    rng = np.random.default_rng([seed, shots])
    # The mean of S - 1 examples is Gaussian with 1 / (S - 1) of their covariance: drawn as such.
    deviation = rng.normal(size=(models, WIDTH)) @ world.root.T / np.sqrt(shots - 1)
    others = world.mean + deviation
    last = world.mean + rng.normal(size=(models, WIDTH)) @ world.root.T
    included = rng.random((models, len(world.x))) < 0.5
    without = ((shots - 1) * others + last) @ world.x.T / shots
    within = ((shots - 1) * (others @ world.x.T) + (world.x**2).sum(axis=1)) / shots
    return np.where(included, within, without), included


def closed_form(world: World, shots: int, fpr: float) -> Floats:
    """The true positive rate of each row (N,) in the paper's limit of many examples."""
    return np.asarray(ndtr(ndtri(fpr) + world.d / np.sqrt(shots)))


def exact(world: World, shots: int, fpr: float) -> Floats:
    """The true positive rate of each row (N,) for any number of examples."""
    return np.asarray(ndtr((ndtri(fpr) + world.d / np.sqrt(shots)) / np.sqrt(1 - 1 / shots)))


@pytest.mark.parametrize("fpr", [0.1, 0.01])
@pytest.mark.parametrize("shots", [32, 128, 512])
def test_an_attacker_at_each_row_s_own_threshold_reaches_the_closed_form(world: World, shots: int, fpr: float) -> None:
    phi, included = fresh(world, shots, MODELS, seed=1)
    expected = exact(world, shots, fpr)
    found = np.array(
        [
            (own[chosen] > np.quantile(own[~chosen], 1 - fpr)).mean()
            for own, chosen in zip(phi.T, included.T, strict=True)
        ]
    )
    # The error of the rate, and that of the threshold carried along the ROC.
    slope = np.exp((ndtri(fpr) ** 2 - ndtri(expected) ** 2) / 2)
    error = np.sqrt((expected * (1 - expected) + slope**2 * fpr * (1 - fpr)) / (MODELS / 2))
    assert np.all(np.abs(found - expected) < 4.5 * error)
    np.testing.assert_allclose(closed_form(world, shots, fpr), expected, atol=1 / shots)


@pytest.mark.parametrize("fpr", SLOPES)
@pytest.mark.parametrize("shots", [32, 512])
def test_the_gate_s_rate_of_each_row_is_the_closed_form(world: World, shots: int, fpr: float) -> None:
    found = row_rates(*fresh(world, shots, MODELS, seed=2), fpr)
    expected = exact(world, shots, fpr)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found.mean() == pytest.approx(expected.mean(), abs=0.002)


def test_leave_one_out_lira_reaches_the_closed_form_on_average(world: World) -> None:
    shots, fpr = 64, 0.1
    phi, included = fresh(world, shots, 4000, seed=3)
    scores = lira_every_model(phi, included, variance="per_example")
    rates = [
        (own[chosen] > np.quantile(own[~chosen], 1 - fpr)).mean()
        for own, chosen in zip(scores.T, included.T, strict=True)
    ]
    assert np.mean(rates) == pytest.approx(exact(world, shots, fpr).mean(), abs=0.01)


def test_halves_of_one_pool_inflate_d_by_the_square_root_of_two(world: World) -> None:
    shots, models = 64, 8000
    rng = np.random.default_rng(4)
    shifts = []
    for _ in range(20):
        pool = world.mean + rng.normal(size=(2 * shots, WIDTH)) @ world.root.T
        included = np.argsort(rng.random((models, 2 * shots)), axis=1) < shots
        phi = included.astype(float) @ (pool @ pool.T) / shots
        count = included.sum(axis=0)
        inside, outside = (phi * included).sum(axis=0) / count, (phi * ~included).sum(axis=0) / (models - count)
        spread = np.sqrt((np.where(included, 0.0, phi - outside) ** 2).sum(axis=0) / (models - count))
        d = (pool * (pool - world.mean)).sum(axis=1) / np.linalg.norm(pool @ world.root, axis=1)
        shifts.append(((inside - outside) / spread * np.sqrt(shots)).sum() / d.sum())
    assert np.mean(shifts) == pytest.approx(np.sqrt(2), abs=0.05)


def test_the_simulated_law_has_the_theory_s_slope(world: World) -> None:
    sizes = (64, 128, 256, 512)
    slopes = {}
    for fpr in (0.1, 0.01):
        points = []
        for shots in sizes:
            rates = row_rates(*fresh(world, shots, 2 * MODELS, seed=5), fpr)
            value = float(rates.mean())
            low, high = (fpr + near * (value - fpr) for near in (0.98, 1.02))
            points.append(Point(shots, Measurement(metric="m", low=low, value=value, high=high, confidence=0.95)))
        law = fit(points, fpr, 0.95)
        expected = [exact(world, shots, fpr).mean() - fpr for shots in sizes]
        assert law.slope == pytest.approx(np.polyfit(np.log10(sizes), np.log10(expected), 1)[0], abs=0.03)
        slopes[fpr] = law.slope
    assert slopes[0.1] == pytest.approx(-0.5, abs=0.06)
    assert slopes[0.01] < slopes[0.1]
