"""Attacks on the loss: signs, shares by hand, and ties."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.loss import attack_p, attack_r, loss
from privacy_gate.attacks.ties import break_ties, share_below

Plant = Callable[..., MembershipEvidence]


def test_loss_is_the_log_probability_and_larger_means_member(plant: Plant) -> None:
    """ml_privacy_meter's LOSS has its sign inverted: AUC .486 on a model that leaks."""
    evidence = plant(0, leak=5.0)
    scores = loss(evidence)
    np.testing.assert_allclose(scores, np.log(1 / (1 + np.exp(-evidence.target))), rtol=1e-9, atol=1e-15)
    assert np.median(scores[evidence.member]) > np.median(scores[evidence.holdout])


def test_a_probability_of_one_is_not_infinite_and_still_ordered() -> None:
    rng = np.random.default_rng(0)
    split = np.repeat(np.array([0, 1], dtype=np.int8), 50)
    phi = np.sort(rng.uniform(30, 600, 100))
    evidence = MembershipEvidence(
        target=phi,
        reference=np.empty((0, 100)),
        included=np.empty((0, 100), dtype=bool),
        label=np.zeros(100, dtype=np.int64),
        split=split,
        logits=np.stack([phi, np.zeros(100)], axis=1),
    )
    assert np.isfinite(loss(evidence)).all()
    assert (np.diff(loss(evidence)) > 0).all()


def test_attack_p_is_the_share_of_the_population_that_loses_more(plant: Plant) -> None:
    evidence = plant(1, leak=1.0, pool=50, population=120)
    losses = -loss(evidence)
    found = attack_p(evidence)
    for row in np.flatnonzero(evidence.pool):
        share = np.mean([losses[row] < losses[z] for z in np.flatnonzero(evidence.population)])
        assert share < found[row] < share + 1 / 120
    np.testing.assert_array_equal(rankdata(found), rankdata(loss(evidence)))


def test_attack_r_is_the_share_of_models_without_the_row_that_lose_more(plant: Plant) -> None:
    evidence = plant(2, leak=1.0, references=9, pool=60)
    found = attack_r(evidence)
    for row in range(len(found)):
        outside = evidence.reference[~evidence.included[:, row], row]
        share = np.mean([evidence.target[row] > value for value in outside])
        assert share < found[row] < share + 1 / 100


def test_attack_r_never_looks_at_models_trained_with_the_row(plant: Plant) -> None:
    evidence = plant(3, leak=1.0)
    other = replace(evidence, reference=np.where(evidence.included, 1e3, evidence.reference))
    np.testing.assert_array_equal(attack_r(other), attack_r(evidence))


def test_ties_are_broken_in_the_lexicographic_order() -> None:
    rng = np.random.default_rng(4)
    share, finer = rng.integers(0, 5, 300) / 5, rng.integers(0, 40, 300).astype(float)
    found = break_ties(share, finer, 0.2)
    order = np.lexsort((finer, share))
    assert (np.diff(found[order]) >= 0).all()
    same = (np.diff(share[order]) == 0) & (np.diff(finer[order]) == 0)
    np.testing.assert_array_equal(np.diff(found[order]) == 0, same)


def test_share_below_counts_strictly() -> None:
    found = share_below(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(np.floor(found * 2) / 2, [0.0, 0.5, 1.0])
