"""The accuracy that hostile clients cost, with intervals over seeds and holdout."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import ndtri, stdtrit

from privacy_gate.metrics.catalogue import METRICS
from privacy_gate.metrics.robustness import (
    Called,
    accuracy_loss,
    breakdown_point,
    byzantine_drop,
    called,
    federated_backdoor,
    needed_holdout,
)
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status

ANY_LOSS = METRICS["stale_drop"]


def hits(accuracy: np.ndarray, rows: int) -> np.ndarray:
    """Models (S, rows), each right on as large a share of the rows as it is told, the same rows first."""
    return np.array([np.arange(rows) < round(share * rows) for share in accuracy], dtype=np.float32)


def test_the_worst_attack_counts_and_is_named() -> None:
    clean = np.array([0.9, 0.91, 0.92])
    left = {name: hits(clean - drop, 10_000) for name, drop in (("mild", 0.05), ("harsh", 0.4))}
    found = byzantine_drop(hits(clean, 10_000), left, 0.95)
    assert found.value == pytest.approx(0.4)
    assert found.subject == "harsh"
    assert found.low is not None
    assert found.low > 0.37


def test_an_attack_that_harms_a_little_less_but_unevenly_is_not_hidden_by_a_steady_one() -> None:
    drops = {"uneven": [0.02, 0.14, 0.02, 0.14, 0.08], "steady": [0.085] * 5}
    clean, left = hits(np.full(5, 0.9), 50_000), {name: hits(0.9 - np.array(d), 50_000) for name, d in drops.items()}
    alone = byzantine_drop(clean, {"uneven": left["uneven"]}, 0.95)
    both = byzantine_drop(clean, left, 0.95)
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
        right = {name: hits(each, 500) for name, each in left.items()}
        drops = [byzantine_drop(hits(clean, 500), {name: right[name] for name in some}, 0.95) for some in names]
        planted = {name: Called(1 - each, hits(clean / 20, 500)) for name, each in right.items()}
        fragile = Called(hits(clean / 15, 500), hits(clean / 20, 500))
        lifts = [federated_backdoor({name: planted[name] for name in some}, fragile, 0.95) for some in names]
        for before, after in [*pairwise(drops), *pairwise(lifts)]:
            assert (ends(after) >= ends(before)).all()


class Regime(NamedTuple):
    """How two models of every seed come to be right: where a sum of normal draws is above what their accuracy asks.

    row, seed          standard deviations of what both have in common on a row, and in a seed
    own_row, own_seed  of what each has for itself; each seed's own draw on each row has 1
    rounds             of which the mean is taken
    """

    before: float
    after: float
    row: float
    own_row: float = 0.0
    seed: float = 0.0
    own_seed: float = 0.0
    rounds: int = 1

    def drawn(self, seeds: int, rows: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Both models' hits (S, rows), whose mean is each one's accuracy over all seeds and rows there might be."""
        spread = np.sqrt(1 + self.row**2 + self.own_row**2 + self.seed**2 + self.own_seed**2)
        common, found = rng.normal(0, self.row, rows) + rng.normal(0, self.seed, (seeds, 1)), []
        for accuracy in (self.before, self.after):
            own = rng.normal(0, self.own_row, rows) + rng.normal(0, self.own_seed, (seeds, 1))
            noise = rng.normal(size=(self.rounds, seeds, rows))
            found.append((common + own + noise + spread * ndtri(accuracy) > 0).mean(axis=0))
        return found


ALIKE = {
    "the same rows are hard for both": Regime(0.9, 0.9, row=3),
    "and seeds differ": Regime(0.9, 0.9, row=10, own_row=0.3, seed=0.1, own_seed=0.1, rounds=3),
    "few rows, ever the same, tell them apart": Regime(0.95, 0.95, row=100, own_row=3),
    "few rows, ever the same, are lost": Regime(0.9, 0.896, row=1000),
    "and there is noise": Regime(0.98, 0.975, row=30, own_row=2),
}
UNLIKE = {
    "a loss that differs over seeds": Regime(0.9, 0.7, row=1, own_row=1, seed=0.1, own_seed=0.3),
    "a small loss, and rows of their own": Regime(0.9, 0.85, row=3, own_row=1, seed=0.3, own_seed=0.3, rounds=3),
    "seeds alone": Regime(0.9, 0.9, row=0, own_seed=1),
}


def independent(before: np.ndarray, after: np.ndarray, confidence: float) -> float:
    """How wide an interval is that takes two models' rows for different ones."""
    seeds, rows = before.shape
    shares = [(each.mean() * rows + 1) / (rows + 2) for each in (before, after)]
    sampling = sum(share * (1 - share) for share in shares) / rows
    error = np.sqrt((before - after).mean(axis=1).var(ddof=1) / seeds + sampling)
    return float(2 * stdtrit(seeds - 1, (1 + confidence) / 2) * error)


@pytest.mark.parametrize(("seeds", "rows"), [(3, 200), (3, 1000), (5, 300), (5, 2000), (10, 500)])
@pytest.mark.parametrize("name", [*ALIKE, *UNLIKE])
def test_the_interval_covers_seeds_and_rows_and_is_narrower_if_models_agree(name: str, seeds: int, rows: int) -> None:
    regime, runs, held = (ALIKE | UNLIKE)[name], 500, 0
    rng = np.random.default_rng([seeds, rows])
    for _ in range(runs):
        before, after = regime.drawn(seeds, rows, rng)
        found = accuracy_loss(METRICS["byzantine_drop"], before, after, 0.95)
        low, _, high = ends(found)
        held += low <= regime.before - regime.after <= high
        if name in ALIKE:
            assert high - low <= independent(before, after, 0.95)
    assert held >= 0.94 * runs


@pytest.mark.parametrize("seeds", [3, 10, 100])
@pytest.mark.parametrize("expected", [1, 2.9, 5])
def test_many_seeds_that_lose_the_same_few_rows_do_not_make_up_for_rows(seeds: int, expected: float) -> None:
    """Seeds that agree on every row are no more than one: the upper end covers what rows there might be."""
    rows, runs = 300, 400
    lost = np.random.default_rng(seeds).random((runs, rows)) < expected / rows
    before = np.ones((seeds, rows))
    covers = [
        ends(accuracy_loss(ANY_LOSS, before, before - np.broadcast_to(each, (seeds, rows)), 0.95))[2] >= expected / rows
        for each in lost
    ]
    assert np.mean(covers) >= 0.97


def test_two_rules_that_differ_on_one_row_in_a_hundred_meet_the_usual_limit_on_a_thousand() -> None:
    plain = hits(np.full(5, 0.9), 1000)
    robust = plain.copy()
    robust[:, 895:905] = 1 - robust[:, 895:905]
    found = accuracy_loss(METRICS["robustness_tax"], plain, robust, 0.95)
    assert found.value == 0
    assert judged_status(found, Limit(max=0.01)) is Status.MET
    assert independent(plain, robust, 0.95) / 2 > 0.03


def test_the_interval_is_that_of_the_means_of_seeds_and_of_rows_with_one_row_lost_and_one_won() -> None:
    before, after = np.random.default_rng(0).random((2, 4, 30))
    by_seed, by_row = [float(np.mean(before[s] - after[s])) for s in range(4)], [1.0, -1.0]
    by_row += [float(np.mean(before[:, row] - after[:, row])) for row in range(30)]
    of_seeds = sum((each - np.mean(by_seed)) ** 2 for each in by_seed) / 3 / 4
    of_rows = sum((each - np.mean(by_row)) ** 2 for each in by_row) / 31 / 32
    reach = np.sqrt(stdtrit(3, 0.95) ** 2 * of_seeds + stdtrit(4, 0.95) ** 2 * of_rows)
    value = np.mean(by_seed)
    assert ends(accuracy_loss(ANY_LOSS, before, after, 0.9)) == pytest.approx([value - reach, value, value + reach])


def test_three_seeds_that_agree_are_held_against_no_loss_that_only_rows_leave_open() -> None:
    """Their two degrees of freedom are for what differs between seeds: nothing, here."""
    plain = hits(np.full(5, 0.9), 1000)
    robust = plain.copy()
    robust[:, 895:905] = 1 - robust[:, 895:905]
    three, five = (ends(accuracy_loss(ANY_LOSS, plain[:seeds], robust[:seeds], 0.95)) for seeds in (3, 5))
    assert three == pytest.approx(five)


def test_the_backdoor_that_works_best_counts_beyond_what_is_called_its_target_anyway() -> None:
    plain = hits(np.array([0.05, 0.06, 0.04]), 1000)
    shown = {"bounded": np.array([0.3, 0.35, 0.25]), "scaled": np.array([0.9, 0.95, 0.85])}
    planted = {name: Called(hits(share, 1000), plain) for name, share in shown.items()}
    found = federated_backdoor(planted, Called(plain, plain), 0.95)
    assert (found.subject, found.metric) == ("scaled", "federated_backdoor")
    assert found.value == pytest.approx(0.85)
    assert found.low is not None
    assert found.low > 0.6


def test_only_the_effect_of_a_trigger_on_the_unattacked_model_is_subtracted() -> None:
    few, many = hits(np.full(3, 0.05), 1000), hits(np.full(3, 0.4), 1000)
    fragile, sound, shy = Called(many, few), Called(few, few), Called(few, many)
    most = Called(hits(np.full(3, 0.9), 1000), few)
    blameless = federated_backdoor({"scaled": fragile}, fragile, 0.95)
    assert (blameless.low, blameless.value) <= (0, 0)
    assert blameless.high is not None
    assert blameless.high < 0.01
    lifts = [federated_backdoor({"scaled": most}, each, 0.95).value for each in (fragile, sound, shy)]
    assert lifts == pytest.approx([0.5, 0.85, 0.85])


def test_a_head_calls_what_its_largest_logit_names_and_shares_ties() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    head = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert called(features, head, 0) == pytest.approx([1.0, 0.0, 1 / 3])
    assert called(features, head + np.array([0, 0, 1.0]), 2) == pytest.approx([0.0, 0.0, 1 / 3])


def test_no_row_that_shows_a_backdoor_is_no_proof_that_there_is_none() -> None:
    never = (Called(np.zeros((3, rows)), np.zeros((3, rows))) for rows in (20, 20_000))
    few, many = (federated_backdoor({"backdoor": each}, each, 0.95).high for each in never)
    assert few is not None
    assert many is not None
    assert few > 0.1
    assert many < 0.001


def test_the_very_same_federations_lose_nothing_by_definition_and_equally_accurate_ones_perhaps_something() -> None:
    right = hits(np.full(5, 0.9), 1000)
    same = accuracy_loss(METRICS["robustness_tax"], right, right, 0.95, same=True)
    assert (same.low, same.value, same.high) == (0, 0, 0)
    assert same.method == "the same federations: 0 by definition"
    high = accuracy_loss(METRICS["robustness_tax"], right, right, 0.95).high
    assert high == pytest.approx(0.0039, abs=0.0001)
    idle = accuracy_loss(METRICS["robustness_tax"], right, right, 0.95, blind=0.9, same=True)
    assert "learns nothing" in str(idle.reason)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("limit", [0.01, 0.03, 0.15])
def test_a_loss_needs_the_rows_with_which_none_at_all_is_seen_to_be_within_its_limit(
    limit: float, confidence: float
) -> None:
    rows = needed_holdout({"m": Limit(max=limit)}, 5, confidence)["m"]
    assert rows is not None
    for count, met in ((rows, True), (rows - 1, False)):
        high = accuracy_loss(ANY_LOSS, *np.ones((2, 5, count)), confidence).high
        assert high is not None
        assert (high <= limit) is met
    assert needed_holdout({"m": Limit(max=0), "n": Limit(min=0.1)}, 5, confidence) == {}, "whoever gains may meet it"


def test_two_seeds_are_no_evidence() -> None:
    assert accuracy_loss(METRICS["robustness_tax"], *np.ones((2, 2, 100)), 0.95).reason == "needs >= 3 seeds, found 2"


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
    found = byzantine_drop(hits(idle, 1000), {"harsh": hits(idle - 0.01, 1000)}, 0.95, blind=0.25)
    assert not found.measured
    assert "learns nothing that it could lose: accuracy 0.254 before" in str(found.reason)
    assert byzantine_drop(hits(idle + 0.05, 1000), {"harsh": hits(idle, 1000)}, 0.95, blind=0.25).measured
    # Models that answer by chance pass as learned no more often than the confidence allows.
    passed = [
        accuracy_loss(ANY_LOSS, np.tile(rng.random(400) < 0.25, (3, 1)), np.zeros((3, 400)), 0.95, blind=0.25).measured
        for _ in range(4000)
    ]
    assert np.mean(passed) < 0.06
