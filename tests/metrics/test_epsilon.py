"""Lower bounds on epsilon: published vectors, validity by simulation, and closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from privacy_gate.metrics.epsilon import (
    epsilon_bound,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu_bound,
    highest_rates,
    one_run_epsilon,
    one_run_gaussian_epsilon,
)

VECTORS = [
    ((1000, 1000, 600), 0.297, 0.584),
    ((1000, 200, 160), 1.085, 1.729),
    ((1000, 100, 95), 2.165, 3.320),
    ((5000, 500, 450), 1.941, 2.774),
]


@pytest.mark.parametrize(("counts", "pure", "gaussian"), VECTORS)
def test_one_run_bounds_are_the_known_ones(counts: tuple[int, int, int], pure: float, gaussian: float) -> None:
    assert one_run_epsilon(*counts, delta=1e-5) == pytest.approx(pure, abs=5e-4)
    # The stated bounds are up to .004 below the exact root that ours finds.
    assert one_run_gaussian_epsilon(*counts, delta=1e-5) == pytest.approx(gaussian, abs=4e-3)


def test_threshold_bound_is_the_known_one() -> None:
    fpr, fnr = highest_rates(caught=60, members=128, accused=5, holdout=128)
    assert (fpr, fnr) == (pytest.approx(0.0888, abs=5e-5), pytest.approx(0.62, abs=5e-5))
    assert epsilon_bound(fpr, fnr, 1e-5) == pytest.approx(1.454, abs=5e-4)


def test_no_leak_proves_an_epsilon_at_most_as_often_as_it_says() -> None:
    """TensorFlow Privacy takes the best of all thresholds: above 0 in 94 % of audits without any leak."""
    rng = np.random.default_rng(0)
    counts = rng.binomial(500, 0.1, size=(2000, 2))
    proved = [epsilon_bound(*highest_rates(tp, 500, fp, 500), delta=0.0) > 0 for tp, fp in counts]
    assert np.mean(proved) <= 0.05


def test_randomised_response_is_never_proved_worse_than_it_is_too_often() -> None:
    """It is exactly epsilon-DP: guesses are right with probability 1 / (1 + exp(-epsilon))."""
    epsilon, guesses = 1.0, 500
    right = np.arange(guesses + 1)
    bounds = np.array([one_run_epsilon(guesses, guesses, int(k), 0.0) for k in right])
    wrong = binom.pmf(right, guesses, 1 / (1 + math.exp(-epsilon)))[bounds > epsilon].sum()
    assert 0.03 < wrong <= 0.05


def test_more_right_guesses_prove_more() -> None:
    pure = [one_run_epsilon(500, 100, right, 1e-5) for right in range(50, 101, 5)]
    gaussian = [one_run_gaussian_epsilon(500, 100, right, 1e-5) for right in range(50, 101, 5)]
    assert pure == sorted(pure)
    assert gaussian == sorted(gaussian)
    assert (pure[0], gaussian[0]) == (0.0, 0.0)


@pytest.mark.parametrize(("canaries", "guesses", "right"), [(100, 0, 0), (100, 10, 0), (100, 100, 40)])
def test_guesses_no_better_than_coins_prove_nothing(canaries: int, guesses: int, right: int) -> None:
    assert one_run_epsilon(canaries, guesses, right, 1e-5) == 0.0
    assert one_run_gaussian_epsilon(canaries, guesses, right, 1e-5) == 0.0


def test_mu_is_that_of_two_gaussians_at_any_threshold() -> None:
    for cut in (-1.0, 0.3, 2.0):
        assert gaussian_mu_bound(norm.sf(cut), norm.cdf(cut - 1.7)) == pytest.approx(1.7)


def test_epsilon_and_delta_of_a_gaussian_invert_each_other() -> None:
    for mu in (0.1, 1.0, 4.0):
        assert gaussian_delta(mu, gaussian_epsilon(mu, 1e-5)) == pytest.approx(1e-5, rel=1e-4)
    assert gaussian_delta(1.0, 0.0) == pytest.approx(2 * norm.cdf(0.5) - 1)
    assert gaussian_epsilon(0.0, 1e-5) == 0.0


def test_rates_that_dp_allows_prove_no_more_than_its_epsilon() -> None:
    """tpr <= min(e^eps fpr + delta, 1 - e^-eps (1 - delta - fpr)): on that curve the bound is eps itself."""
    for epsilon in (0.5, 2.0):
        for fpr in (0.001, 0.1, 0.4):
            tpr = min(math.exp(epsilon) * fpr + 1e-3, 1 - math.exp(-epsilon) * (1 - 1e-3 - fpr))
            assert epsilon_bound(fpr, 1 - tpr, 1e-3) == pytest.approx(epsilon)
