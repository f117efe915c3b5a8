"""Tests of the audit fail when they should, and hardly ever otherwise."""

from collections.abc import Callable

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.controls.self_tests import (
    LEVEL,
    comparable,
    control_evidence,
    distinct,
    negative_control,
    positive_control,
    same_mix,
)


def random_split(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.permutation(np.arange(rows) % 2).astype(np.int8)


def alone(split: np.ndarray) -> MembershipEvidence:
    """Evidence without references: controls only read its split."""
    rows = len(split)
    return MembershipEvidence(
        target=np.zeros(rows),
        reference=np.zeros((0, rows)),
        included=np.zeros((0, rows), dtype=bool),
        label=np.zeros(rows, dtype=np.int64),
        split=split,
        logits=np.zeros((rows, 2)),
    )


def parts(members: int, holdout: int, population: int) -> np.ndarray:
    return np.repeat([Split.MEMBER, Split.HOLDOUT, Split.POPULATION], [members, holdout, population]).astype(np.int8)


@pytest.mark.parametrize("classes", [2, 10, 150])
def test_a_random_split_is_comparable_with_the_stated_chance(classes: int) -> None:
    rng = np.random.default_rng(classes)
    share = rng.dirichlet(np.ones(classes))
    chances = np.array([same_mix(rng.choice(classes, 600, p=share), random_split(rng, 600)) for _ in range(500)])
    assert 0.01 < np.mean(chances < 0.05) < 0.075
    assert np.mean(chances < LEVEL) <= 0.005


def test_a_class_that_is_commoner_among_members_is_seen() -> None:
    rng = np.random.default_rng(0)
    split = random_split(rng, 1000)
    label = rng.integers(0, 10, 1000)
    label[(split == Split.MEMBER) & (rng.random(1000) < 0.15)] = 3
    assert not comparable(label, split).held
    assert "draw members and holdout from one population" in comparable(label, split).detail


def test_groups_that_are_mixed_differently_are_seen_though_classes_are_not() -> None:
    rng = np.random.default_rng(0)
    split, label = random_split(rng, 1000), rng.integers(0, 10, 1000)
    group = np.where(rng.random(1000) < np.where(split == Split.MEMBER, 0.6, 0.4), "a", "b")
    assert comparable(label, split).held
    assert not comparable(label, split, group).held


def test_the_population_may_be_mixed_as_it_likes() -> None:
    label = np.concatenate([np.arange(400) % 4, np.zeros(300, dtype=np.int64)])
    assert same_mix(label, parts(200, 200, 300)) == pytest.approx(1.0)
    assert same_mix(np.zeros(700, dtype=np.int64), parts(200, 200, 300)) == 1.0


def test_one_example_that_is_member_and_holdout_is_one_too_many() -> None:
    content = np.random.default_rng(0).integers(0, 256, (30, 32)).astype(np.uint8)
    content[29] = content[0]  # population repeats a member: no one is scored as both
    assert distinct(content, parts(10, 10, 10)).held
    content[15] = content[3]
    assert not distinct(content, parts(10, 10, 10)).held
    assert "1 of 10" in distinct(content, parts(10, 10, 10)).detail
    with pytest.raises(EvidenceError, match=r"expected \(30, 32\)"):
        distinct(content[:20], parts(10, 10, 10))


def test_untouched_population_measures_chance_as_often_as_stated() -> None:
    evidence, failed = alone(parts(100, 400, 300)), 0
    for seed in range(250):
        rng = np.random.default_rng(seed)
        scores = {"normal": rng.normal(size=800), "tied": rng.integers(0, 5, 800).astype(float)}
        failed += not negative_control(evidence, scores)[0].held
    assert failed <= 3


def shifted(rows: slice, shift: float, share: float = 1.0) -> Callable[[np.random.Generator], Floats]:
    def scores(rng: np.random.Generator) -> Floats:
        found = rng.normal(size=800)
        found[rows] += shift * (rng.random(len(found[rows])) < share)
        return found

    return scores


@pytest.mark.parametrize(
    "scores",
    [shifted(slice(500, 800), 0.5), shifted(slice(100, 500), 0.5), shifted(slice(500, 800), 5.0, share=0.06)],
    ids=["population trained on", "holdout trained on", "a few of the population trained on"],
)
def test_population_that_does_not_look_like_the_holdout_is_seen(scores: Callable[..., Floats]) -> None:
    evidence = alone(parts(100, 400, 300))
    caught = [
        not negative_control(evidence, {"lira": scores(np.random.default_rng(seed)), "noise": shifted(slice(0), 0)(
            np.random.default_rng(-seed - 1 + 2**32)
        )})[0].held
        for seed in range(20)
    ]  # fmt: skip
    assert sum(caught) >= 19


def test_without_population_or_an_attack_that_scores_it_the_negative_control_is_not_listed() -> None:
    scores = np.random.default_rng(0).normal(size=800)
    assert negative_control(alone(parts(400, 400, 0)), {"loss": scores}) == []
    assert negative_control(alone(parts(400, 390, 10)), {"loss": scores}) == []
    unscored = np.where(parts(100, 400, 300) == Split.POPULATION, np.nan, scores)
    assert negative_control(alone(parts(100, 400, 300)), {"lira": unscored}) == []
    found = negative_control(alone(parts(100, 400, 300)), {"lira": unscored, "loss": scores})
    assert "1 attack;" in found[0].detail


PLANTED = parts(64, 128, 300)


def test_a_leak_that_every_attack_sees_passes_the_positive_control() -> None:
    rng = np.random.default_rng(0)
    leak = 3.0 * (PLANTED == Split.MEMBER)
    assert positive_control(alone(PLANTED), {name: leak + rng.normal(size=492) for name in "abc"}).held


@pytest.mark.parametrize("fault", [-3.0, 0.0, 0.3], ids=["sign flipped", "deaf", "nearly deaf"])
def test_one_attack_that_misses_a_certain_leak_fails_the_positive_control_by_name(fault: float) -> None:
    member = PLANTED == Split.MEMBER
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores = {"good": 3.0 * member + rng.normal(size=492), "broken": fault * member + rng.normal(size=492)}
        control = positive_control(alone(PLANTED), scores)
        assert not control.held
        assert "broken AUC" in control.detail
        assert control.detail.count("not caught") == 1


def test_an_attack_right_on_average_but_lost_at_low_false_positive_rates_is_not_good_enough() -> None:
    scores = np.where(PLANTED == Split.MEMBER, 1.0, 0.0)
    scores[64:84] = 2.0  # a sixth of the holdout is above every member
    control = positive_control(alone(PLANTED), {"blunt": scores})
    assert "AUC 0.844 (>= 0.7" in control.detail
    assert not control.held


def test_no_attack_at_all_fails_the_positive_control() -> None:
    assert not positive_control(alone(PLANTED), {}).held


def test_planted_evidence_takes_model_0_as_target_and_its_training_set_as_members() -> None:
    rng = np.random.default_rng(0)
    included = np.zeros((4, 9), dtype=bool)
    included[:, :6] = [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]]
    arrays = {
        "label": np.arange(9) % 3,
        "included": included,
        "confidence": rng.normal(size=(4, 9)).astype(np.float32),
        "residual": rng.random((4, 9)).astype(np.float32),
        "features": rng.random((9, 3)).astype(np.float32),
        "logits": rng.normal(size=(2, 9, 3)).astype(np.float32),
    }
    evidence = control_evidence(arrays)
    assert evidence.member.nonzero()[0].tolist() == [0, 1]
    assert evidence.holdout.nonzero()[0].tolist() == [2, 3, 4, 5]
    assert evidence.population.nonzero()[0].tolist() == [6, 7, 8]
    np.testing.assert_array_equal(evidence.reference, arrays["confidence"][1:])
    np.testing.assert_array_equal(evidence.included, included[1:])
