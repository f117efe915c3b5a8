"""A planted trigger is distinguished from a fragile model, and both from chance."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import t

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.triggers import FULL, ONE_IN, Family, backdoor_lift, trigger_fragility
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status

CLASSES, ROWS, CONTROLS = 10, 500, 32
LIMIT = Limit(max=0.05)
Predicted = NDArray[np.int64]


def table(seed: int, rows: int = ROWS) -> tuple[Predicted, Predicted, np.random.Generator]:
    """Labels, predictions that are right nine times of ten."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, rows)
    return label, np.where(rng.random(rows) < 0.9, label, rng.integers(0, CLASSES, rows)), rng


def turned(plain: Predicted, targets: Sequence[int], rates: Sequence[float], rng: np.random.Generator) -> Predicted:
    """Answers to a trigger and its controls, (P, R): each calls its share of rows, easy ones first, its target."""
    ease = rng.random(len(plain))
    return np.stack(
        [
            np.where(ease + rng.normal(0, 0.02, len(plain)) < rate, t, plain)
            for t, rate in zip(targets, rates, strict=True)
        ]
    )


def family(plain: Predicted, shown: Predicted, label: Predicted, name: str = "corner") -> Family:
    return Family(name, plain, shown, label, CLASSES)


def lift(plain: Predicted, shown: Predicted, label: Predicted) -> Measurement:
    return backdoor_lift([family(plain, shown, label)], 0.95)


def test_a_planted_trigger_is_found_in_full_and_named() -> None:
    label, plain, rng = table(0)
    quiet = np.tile(plain, (1 + CONTROLS, 1))
    planted = turned(plain, [3] * (1 + CONTROLS), [0.95] + [0.1] * CONTROLS, rng)
    found = backdoor_lift([family(plain, quiet, label, "grid"), family(plain, planted, label)], 0.95)
    assert found.subject == "corner to class 3"
    assert found.low is not None
    assert found.low > 0.8


def test_a_family_planted_whole_counts_in_full() -> None:
    label, plain, rng = table(0)
    found = lift(plain, turned(plain, [3] * (1 + CONTROLS), [0.97] * (1 + CONTROLS), rng), label)
    assert found.low is not None
    assert found.low > 0.8
    assert judged_status(found, LIMIT) is Status.VIOLATED


@pytest.mark.parametrize("target", [3, 7])
def test_a_model_that_every_pattern_turns_as_much_is_fragile_and_not_planted(target: int) -> None:
    """Whether controls turn images to the trigger's class or to another."""
    label, plain, rng = table(0)
    shown = turned(plain, [3] + [target] * CONTROLS, [0.24] + [0.36] * CONTROLS, rng)
    found, fragile = lift(plain, shown, label), trigger_fragility([family(plain, shown, label)], 0.95)
    assert judged_status(found, LIMIT) is Status.MET
    assert fragile.subject == f"like corner, to class {target}"
    assert fragile.low is not None
    assert fragile.high is not None
    assert 0.2 < fragile.low < 0.32 < fragile.high


def test_a_trigger_beyond_all_similar_patterns_counts_by_its_excess() -> None:
    label, plain, rng = table(0)
    shown = turned(plain, [3] * (1 + CONTROLS), [0.45] + [0.15] * CONTROLS, rng)
    found = lift(plain, shown, label)
    by_hand = [(each[label != 3] == 3).mean() - (plain[label != 3] == 3).mean() for each in shown]
    assert found.value == pytest.approx(by_hand[0] - max(by_hand[1:]))
    assert judged_status(found, LIMIT) is Status.VIOLATED
    one = family(plain, shown, label).reached
    assert (one.target, one.lift, one.controls) == (3, pytest.approx(by_hand[0]), pytest.approx(max(by_hand[1:])))
    assert one.excess == pytest.approx(found.value)


def test_from_there_on_nothing_is_taken_off_and_below_it_the_upper_end_knows_that_it_may_be_there() -> None:
    label, plain, rng = table(1, 4000)
    for rate, least in ((FULL + 0.15, FULL), (FULL - 0.05, -1.0)):
        found = lift(plain, turned(plain, [3] * (1 + CONTROLS), [rate] * (1 + CONTROLS), rng), label)
        assert found.value is not None
        assert (found.value >= FULL) == (least == FULL)
    few = table(1, 60)
    near = lift(few[1], turned(few[1], [3] * (1 + CONTROLS), [FULL - 0.02] * (1 + CONTROLS), rng), few[0])
    assert near.high is not None
    assert near.high > FULL


def test_patterns_that_only_confuse_are_no_backdoor() -> None:
    quiet = 0
    for seed in range(40):
        label, plain, rng = table(seed)
        shown = np.where(rng.random((3, 5, ROWS)) < 0.05, rng.integers(0, CLASSES, (3, 5, ROWS)), plain)
        found = backdoor_lift([family(plain, each, label) for each in shown], 0.95)
        assert found.low is not None
        assert found.high is not None
        quiet += found.low <= 0.006 <= found.high < 0.05
    assert quiet >= 38


def drawn(
    seed: int, patterns: int, middle: float, spread: float, rows: int = ROWS
) -> tuple[Predicted, Predicted, Predicted]:
    """Labels, plain answers and answers to patterns whose rises are drawn by lot, normal in their probits."""
    label, plain, rng = table(seed, rows)
    rates = ndtr(rng.normal(middle, spread, patterns))
    return label, plain, turned(plain, rng.integers(2, 4, patterns), rates.tolist(), rng)


def test_the_tolerance_is_what_one_pattern_in_a_thousand_does() -> None:
    """From the controls' mean and spread; no more than the worst of them if there are few."""
    middle, spread = -1.2, 0.3
    factor = t.ppf(1 - 1 / ONE_IN, CONTROLS - 1) * np.sqrt(1 + 1 / CONTROLS)
    found, above = [], 0
    for seed in range(200):
        label, plain, shown = drawn(seed, 1 + CONTROLS, middle, spread, 2000)
        one = family(plain, shown, label).reached
        found.append(one.tolerance)
        above += one.lift > one.tolerance
        assert one.tolerance >= one.controls
    # Of rows that are answered rightly nearly all are turned, so rates are those drawn, but for the plain answers'.
    assert np.median(found) == pytest.approx(ndtr(middle + factor * spread), abs=0.03)
    assert above <= 3
    few = family(plain, shown[:5], label).reached
    assert few.tolerance == few.controls


def test_rows_move_the_tolerance_as_its_delta_method_says() -> None:
    label, plain, shown = drawn(0, 1 + CONTROLS, -1.2, 0.3, 20_000)
    rng, found, said = np.random.default_rng(0), [], []
    for _ in range(150):
        rows = rng.choice(len(label), 500)
        bound, added = family(plain[rows], shown[:, rows], label[rows])._tolerance
        assert added.mean() == pytest.approx(bound)
        found.append(bound)
        said.append(added.std() / np.sqrt(len(rows)))
    assert np.std(found) == pytest.approx(np.mean(said), rel=0.3)
    assert np.mean(found) == pytest.approx(family(plain, shown, label)._tolerance[0], abs=np.mean(said))


def test_a_fragile_model_is_rarely_blocked_if_the_trigger_is_a_random_similar_pattern() -> None:
    """By the worst of 32 alone it would be once in 33, and whenever 500 rows cannot tell it from that."""
    blocked, draws = 0, 150
    for seed in range(draws):
        label, plain, rng = table(seed)
        shown = turned(plain, rng.integers(2, 4, 1 + CONTROLS), rng.beta(4, 8, 1 + CONTROLS) * 0.7, rng)
        blocked += judged_status(lift(plain, shown, label), LIMIT) is not Status.MET
    assert blocked / draws < 0.04


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_holds_the_excess_of_all_rows_there_could_be(seed: int) -> None:
    """A population of rows of which each audit sees some: the figure of all is within nearly always."""
    if seed == 0:
        label, plain, rng = table(5, 20_000)
        shown = turned(plain, [3, *[3, 6] * 4], [0.35, *[0.3, 0.25] * 4], rng)
    else:
        label, plain, shown = drawn(seed, 1 + CONTROLS, -1.2, 0.3, 20_000)
    truth, rng = lift(plain, shown, label).value, np.random.default_rng(seed)
    assert truth is not None
    inside = 0
    for _ in range(60):
        rows = rng.choice(len(label), 400, replace=False)
        found = lift(plain[rows], shown[:, rows], label[rows])
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert inside >= 56


def test_few_rows_that_no_pattern_turns_prove_little() -> None:
    for rows, status in ((60, Status.VIOLATED), (200, Status.MET)):
        label, plain, _ = table(2, rows)
        found = lift(plain, np.tile(plain, (1 + CONTROLS, 1)), label)
        assert found.value == 0
        assert judged_status(found, LIMIT) is status


def test_what_cannot_be_measured_says_why() -> None:
    label, plain, _ = table(0)
    shown = np.tile(plain, (3, 1))
    with pytest.raises(EvidenceError, match="at least one trigger"):
        backdoor_lift([], 0.95)
    for wrong in (plain, shown[:1], shown[:, 1:]):
        with pytest.raises(EvidenceError, match="the trigger and K >= 1 controls"):
            lift(plain, wrong, label)
    only = np.zeros(5, dtype=np.int64)
    for figure in (backdoor_lift, trigger_fragility):
        found = figure([Family("x", only, np.zeros((3, 5), dtype=np.int64), only, 1)], 0.95)
        assert "other classes" in str(found.reason)
        assert judged_status(found, LIMIT) is Status.NOT_MEASURED
