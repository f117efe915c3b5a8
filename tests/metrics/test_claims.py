"""Claims of differential privacy: true ones pass, false ones fail, and nothing is proved if nothing leaks."""

import numpy as np
import pytest
from scipy.special import ndtri

from privacy_gate.metrics.claims import BY_CANARIES, BY_RATES, bounds_by_canaries, bounds_by_rates, excess
from privacy_gate.metrics.epsilon import gaussian_epsilon
from privacy_gate.verdict.judgement import Measurement

DELTA = 1e-5
AUDITS = 200


def values(bounds: list[Measurement]) -> dict[str, float]:
    return {one.subject: float(one.value) for one in bounds if one.value is not None}


def gaussian_audit(rng: np.random.Generator, mu: float, rows: int = 1000) -> dict[str, float]:
    """Scores of a mu-GDP mechanism: normal, members shifted by mu."""
    fixing, holdout = rng.normal(size=(2, rows))
    found = bounds_by_rates(fixing, rng.normal(mu, 1, rows), holdout, 0.05, DELTA, 0.05)
    member = rng.random(rows) < 0.5
    return values(found + bounds_by_canaries(rng.normal(size=rows) + mu * member, member, 0.2, DELTA, 0.05))


def test_without_a_leak_no_method_proves_more_than_nothing_in_more_than_one_audit_of_twenty() -> None:
    """The best of all thresholds, as TF Privacy's report takes it, is above 0 in most such audits."""
    rng = np.random.default_rng(0)
    found = [gaussian_audit(rng, 0.0) for _ in range(AUDITS)]
    for name in (*BY_RATES, *BY_CANARIES):
        assert np.mean([bounds[name] > 0 for bounds in found]) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / AUDITS)
    best = []
    for _ in range(40):
        member, holdout = np.sort(rng.normal(size=(2, 1000)))
        ratios = [(member > t).mean() / (holdout > t).mean() for t in holdout[5:-5:10]]
        best.append(np.log(max(ratios)))
    assert np.mean(np.array(best) > 0) > 0.9


@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_a_true_claim_is_called_false_in_one_audit_of_twenty_at_most_and_a_bold_one_always(mu: float) -> None:
    rng, truth = np.random.default_rng(int(10 * mu)), gaussian_epsilon(mu, DELTA)
    found = [gaussian_audit(rng, mu) for _ in range(AUDITS)]
    for name in (*BY_RATES, *BY_CANARIES):
        assert np.mean([bounds[name] > truth for bounds in found]) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / AUDITS)
    if mu > 1:
        for name in (*BY_RATES, *BY_CANARIES):
            assert np.mean([bounds[name] > 0.3 for bounds in found]) > 0.95


def test_randomised_response_is_bounded_by_its_own_epsilon() -> None:
    """Pure DP, whose epsilon the rates reach: the guess is right with probability e^eps / (1 + e^eps)."""
    rng, epsilon = np.random.default_rng(4), 1.5
    share = np.exp(epsilon) / (1 + np.exp(epsilon))
    bounds = []
    for _ in range(AUDITS):
        member = rng.random(2000) < 0.5
        said = np.where(rng.random(2000) < share, member, ~member)
        scores = said + 1e-3 * rng.random(2000)
        bounds.append(values(bounds_by_canaries(scores, member, 0.5, DELTA, 0.05))["one run"])
    assert np.mean(np.array(bounds) > epsilon) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / AUDITS)
    assert np.median(bounds) > 1.1


def test_the_excess_takes_the_largest_bound_that_assumes_no_model() -> None:
    rng = np.random.default_rng(5)
    member = rng.random(400) < 0.5
    bounds = bounds_by_canaries(rng.normal(size=400) + 5 * member, member, 0.5, DELTA, 0.025)
    bounds += bounds_by_rates(*rng.normal(size=(3, 500)), 0.05, DELTA, 0.025)
    found = excess(bounds, 1.0)
    assert found.value == pytest.approx(values(bounds)["one run"] - 1.0)
    assert found.confidence == pytest.approx(0.95)
    assert excess(bounds, None).reason == "the dossier claims no epsilon: attach claim.yaml"


def test_too_few_rows_or_canaries_are_no_evidence() -> None:
    few = np.zeros(19)
    assert "needs 20 members" in str(bounds_by_rates(few, few, few, 0.05, DELTA, 0.05)[0].reason)
    assert "needs >= 20 canaries, found 19" in str(bounds_by_canaries(few, few > 0, 0.5, DELTA, 0.05)[0].reason)
    both = bounds_by_rates(few, few, few, 0.05, DELTA, 0.05)
    assert excess(both, 1.0).reason == both[0].reason


def test_more_guesses_right_than_chance_allows_is_what_counts() -> None:
    assert float(ndtri(0.975)) > 1.9  # of a thousand fair guesses about 531 are right at most
    member = np.arange(1000) % 2 == 0
    scores = np.where(member, 1.0, -1.0) + 1e-6 * np.arange(1000)
    assert values(bounds_by_canaries(scores, member, 1.0, DELTA, 0.05))["one run"] > 3.0
