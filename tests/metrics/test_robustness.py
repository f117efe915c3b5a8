"""What hostile clients cost, with intervals over seeds and holdout."""

from itertools import pairwise

import numpy as np
import pytest

from privacy_gate.metrics.robustness import (
    accuracy_loss,
    breakdown_point,
    byzantine_drop,
    federated_backdoor,
    needed_holdout,
)
from privacy_gate.verdict import Limit, Measurement, Status, judged_status


def test_the_worst_attack_counts_and_is_named() -> None:
    clean = np.array([0.9, 0.91, 0.92])
    found = byzantine_drop(clean, {"mild": clean - 0.05, "harsh": clean - 0.4}, 10_000, 0.95)
    assert found.value == pytest.approx(0.4)
    assert found.subject == "harsh"
    assert found.low is not None
    assert found.low > 0.37


def test_an_attack_that_harms_a_little_less_but_unevenly_is_not_hidden_by_a_steady_one() -> None:
    clean = np.full(5, 0.9)
    uneven, steady = clean - np.array([0.02, 0.14, 0.02, 0.14, 0.08]), clean - 0.085
    alone = byzantine_drop(clean, {"uneven": uneven}, 100_000, 0.95)
    both = byzantine_drop(clean, {"uneven": uneven, "steady": steady}, 100_000, 0.95)
    assert judged_status(alone, Limit(max=0.12)) is judged_status(both, Limit(max=0.12)) is Status.VIOLATED
    assert (both.subject, both.value, both.high) == ("steady", pytest.approx(0.085), alone.high)


def ends(found: Measurement) -> np.ndarray:
    return np.array([found.low, found.value, found.high], dtype=float)


def test_another_attack_never_lowers_the_figure_nor_either_end() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        clean = 0.9 + 0.01 * rng.normal(size=4)
        left = {str(each): clean - rng.uniform(0, 0.2) - rng.uniform(0, 0.1) * rng.random(4) for each in range(4)}
        names = [list(left)[:count] for count in (1, 2, 3, 4)]
        drops = [byzantine_drop(clean, {name: left[name] for name in some}, 500, 0.95) for some in names]
        shares = {name: (1 - each, clean / 20) for name, each in left.items()}
        lifts = [federated_backdoor({name: shares[name] for name in some}, 500, 0.95) for some in names]
        for before, after in [*pairwise(drops), *pairwise(lifts)]:
            assert (ends(after) >= ends(before)).all()


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_covers_seeds_and_holdout(seeds: int) -> None:
    """Accuracies vary over seeds; on the holdout each is read with binomial error that the seeds share."""
    rng, held, runs, rows = np.random.default_rng(seeds), 0, 400, 1000
    for _ in range(runs):
        before, after = 0.9 + rng.normal(0, 0.01, seeds), 0.7 + rng.normal(0, 0.03, seeds)
        error = [rng.binomial(rows, p) / rows - p for p in (0.9, 0.7)]
        found = accuracy_loss("byzantine_drop", before + error[0], after + error[1], rows, 0.95)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.2 <= found.high
    assert held >= 0.94 * runs


def test_the_backdoor_that_works_best_counts_beyond_what_is_called_its_target_anyway() -> None:
    plain = np.array([0.05, 0.06, 0.04])
    planted = {"bounded": (np.array([0.3, 0.35, 0.25]), plain), "scaled": (np.array([0.9, 0.95, 0.85]), plain)}
    found = federated_backdoor(planted, 1000, 0.95)
    assert (found.subject, found.metric) == ("scaled", "federated_backdoor")
    assert found.value == pytest.approx(0.85)
    assert found.low is not None
    assert found.low > 0.6


def test_no_row_that_shows_a_backdoor_is_no_proof_that_there_is_none() -> None:
    never = np.zeros(3)
    few, many = (federated_backdoor({"backdoor": (never, never)}, rows, 0.95).high for rows in (20, 20_000))
    assert few is not None
    assert many is not None
    assert few > 0.1
    assert many < 0.001


def test_the_very_same_federations_lose_nothing_by_definition_and_equally_accurate_ones_perhaps_something() -> None:
    right, fixed = np.full(5, 0.9), {"rows": 1000, "confidence": 0.95}
    same = accuracy_loss("robustness_tax", right, right, **fixed, same=True)  # type: ignore[arg-type]
    assert (same.low, same.value, same.high) == (0, 0, 0)
    assert same.method == "the same federations: 0 by definition"
    high = accuracy_loss("robustness_tax", right, right, **fixed).high  # type: ignore[arg-type]
    assert high == pytest.approx(0.037, abs=0.001)
    idle = accuracy_loss("robustness_tax", right, right, **fixed, blind=0.9, same=True)  # type: ignore[arg-type]
    assert "learns nothing" in str(idle.reason)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("limit", [0.01, 0.03, 0.15])
def test_a_loss_needs_the_rows_with_which_none_at_all_is_seen_to_be_within_its_limit(
    limit: float, confidence: float
) -> None:
    rows = needed_holdout({"m": Limit(max=limit)}, 5, confidence)["m"]
    assert rows is not None
    for count, met in ((rows, True), (rows - 1, False)):
        high = accuracy_loss("m", np.ones(5), np.ones(5), count, confidence).high
        assert high is not None
        assert (high <= limit) is met
    assert needed_holdout({"m": Limit(max=0), "n": Limit(min=0.1)}, 5, confidence) == {}, "whoever gains may meet it"


def test_two_seeds_are_no_evidence() -> None:
    assert accuracy_loss("robustness_tax", np.ones(2), np.ones(2), 100, 0.95).reason == "needs >= 3 seeds, found 2"


def drop(low: float, value: float, high: float) -> Measurement:
    return Measurement(metric="byzantine_drop", value=value, low=low, high=high, confidence=0.95, method="m")


def test_the_breakdown_point_is_the_first_share_beyond_the_limit_at_each_end() -> None:
    drops = {1: drop(0.0, 0.02, 0.1), 2: drop(0.05, 0.1, 0.2), 3: drop(0.1, 0.3, 0.5), 4: drop(0.3, 0.5, 0.7)}
    found = breakdown_point(drops, 10, 0.15, 0.95)
    assert (found.low, found.value, found.high) == (0.2, 0.3, 0.4)
    never = breakdown_point({1: drop(0.0, 0.01, 0.02)}, 10, 0.15, 0.95)
    assert (never.low, never.value, never.high) == (0.5, 0.5, 0.5)


def test_a_federation_that_learns_nothing_has_nothing_to_lose_and_so_shows_nothing() -> None:
    idle, rng = 0.25 + 0.01 * np.arange(5) / 5, np.random.default_rng(0)
    found = byzantine_drop(idle, {"harsh": idle - 0.01}, 1000, 0.95, blind=0.25)
    assert not found.measured
    assert "learns nothing that could be lost: 0.254 right before" in str(found.reason)
    assert byzantine_drop(idle + 0.05, {"harsh": idle}, 1000, 0.95, blind=0.25).measured
    # Models that answer by chance pass as learned no more often than the confidence allows.
    passed = [
        accuracy_loss("x", np.repeat(rng.binomial(400, 0.25) / 400, 3), np.zeros(3), 400, 0.95, blind=0.25).measured
        for _ in range(4000)
    ]
    assert np.mean(passed) < 0.06
