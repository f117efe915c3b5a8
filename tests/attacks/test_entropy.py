"""The modified entropy: its formula, its far end, and thresholds by exhaustive search."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy_gate.attacks.entropy import best_threshold, entropy, log_modified_entropy, thresholds
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.errors import EvidenceError

Plant = Callable[..., MembershipEvidence]


def test_it_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(200, 6)) * 3, rng.integers(0, 6, 200)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row in range(200):
        y = label[row]
        expected = -(1 - p[row, y]) * np.log(p[row, y])
        expected -= sum(p[row, i] * np.log(1 - p[row, i]) for i in range(6) if i != y)
        assert np.exp(log_modified_entropy(logits, label)[row]) == pytest.approx(expected, rel=1e-9)


def test_two_classes_have_a_closed_form() -> None:
    """With two classes it is -2 (1 - p) log p: for phi = z nats, p = 1 / (1 + exp(-z))."""
    z = np.array([-300.0, -3.0, 0.0, 2.0, 40.0, 300.0])
    found = log_modified_entropy(np.stack([z, np.zeros(6)], axis=1), np.zeros(6, dtype=np.int64))
    np.testing.assert_allclose(found, np.log(2 * np.logaddexp(0, -z)) - np.logaddexp(0, z), rtol=1e-12)


def test_it_does_not_change_when_all_logits_of_a_row_shift() -> None:
    rng = np.random.default_rng(1)
    logits, label = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    shifted = logits + rng.normal(size=(50, 1)) * 100
    np.testing.assert_allclose(log_modified_entropy(shifted, label), log_modified_entropy(logits, label), rtol=1e-9)


def test_confidently_wrong_is_the_least_likely_member() -> None:
    logits = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.0, 1.0, 1.0]])
    found = log_modified_entropy(logits, np.zeros(3, dtype=np.int64))
    assert found.argsort().tolist() == [0, 2, 1]


def test_best_threshold_is_that_of_exhaustive_search() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        value, member = rng.integers(0, 8, 30).astype(float), rng.random(30) < 0.5
        cut = best_threshold(value, member)
        reached = np.mean(value[member] <= cut) - np.mean(value[~member] <= cut)
        gains = [np.mean(value[member] <= step) - np.mean(value[~member] <= step) for step in np.unique(value)]
        assert reached == pytest.approx(max(gains))


def test_each_class_has_its_own_threshold_and_a_class_without_members_the_common_one() -> None:
    value = np.array([1.0, 2.0, 3.0, 4.0, 11.0, 12.0, 13.0, 14.0, 7.0])
    member = np.array([True, True, False, False, True, True, False, False, False])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    found = thresholds(value, member, label, 3)
    np.testing.assert_array_equal(found[:2], [2.5, 12.5])
    assert found[2] == best_threshold(value, member)


def test_thresholds_come_from_the_reference_and_not_from_the_candidate(plant: Plant) -> None:
    evidence = plant(3, leak=3.0)
    shift = 0.1 * np.arange(len(evidence.target))[:, None] * (np.arange(3) == 0)
    other = replace(evidence, logits=evidence.logits + shift)
    gap = entropy(other) - entropy(evidence)
    expected = log_modified_entropy(evidence.logits, evidence.label) - log_modified_entropy(other.logits, other.label)
    np.testing.assert_allclose(gap, expected, atol=1e-9)


def test_no_logits_of_a_reference_is_refused(plant: Plant) -> None:
    with pytest.raises(EvidenceError, match="logits of reference 0"):
        entropy(replace(plant(4), reference_logits=None))
