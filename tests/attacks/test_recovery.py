"""Heads recovered from answers: exact to the digits that answers have, and honest if answers say too little."""

from collections.abc import Callable

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.heads import centred, with_ones
from privacy_gate.attacks.recovery import _weighted, recover, recover_rounded
from privacy_gate.attacks.release import Release, released
from privacy_gate.attacks.view import view_of

Grow = Callable[..., MembershipEvidence]
Auc = Callable[[Floats, Floats], float]


def head_and_rows(seed: int, rows: int, width: int, scale: float = 1.0, classes: int = 5) -> tuple[Floats, Floats]:
    """A centred head (C, D) whose logits have a spread of about `scale`, and rows with ones (N, D)."""
    rng = np.random.default_rng(seed)
    x = with_ones(rng.normal(size=(rows, width)) * np.linspace(0.2, 2, width))
    return centred(scale * rng.normal(size=(classes, width + 1)) / np.sqrt(width)), x


def error(found: Floats, head: Floats) -> float:
    return float(np.linalg.norm(found - head) / np.linalg.norm(head))


@pytest.mark.parametrize("width", [10, 100, 300])
def test_float32_probabilities_reveal_the_head(width: int) -> None:
    """Reached: 4e-8 to 2e-7 of the head's norm."""
    head, x = head_and_rows(width, 600, width)
    found = recover(x, released(x @ head.T, Release()))
    assert error(found.head, head) < 1e-6
    assert found.residual < 1e-6
    assert found.sound
    assert found.used == 1


def test_trained_heads_are_recovered_as_well(grow: Grow) -> None:
    evidence = grow(0)
    assert evidence.features is not None
    assert evidence.head is not None
    x = with_ones(evidence.features)
    found = recover(x, released(x @ evidence.head.T, Release()))
    assert error(found.head, centred(evidence.head)) < 1e-3


@pytest.mark.parametrize("scale", [30.0, 60.0])
def test_probabilities_that_underflow_in_many_rows_are_left_out(scale: float) -> None:
    head, x = head_and_rows(1, 600, 40, scale)
    answers = released(x @ head.T, Release())
    assert (answers == 0).any(axis=1).mean() > 0.1
    found = recover(x, answers)
    assert found.used < 1
    assert error(found.head, head) < 1e-3
    assert found.sound


def test_fewer_rows_than_features_give_the_head_that_answers_alike() -> None:
    head, x = head_and_rows(2, 60, 200)
    answers = released(x @ head.T, Release())
    found = recover(x, answers)
    assert found.sound
    np.testing.assert_allclose(released(x @ found.head.T, Release()), answers, rtol=1e-4)
    assert np.linalg.norm(found.head) < np.linalg.norm(head)  # of least norm among those


def test_equal_features_share_their_weight() -> None:
    head, x = head_and_rows(3, 300, 30)
    twice = np.concatenate([x[:, :10], x], axis=1)
    found = recover(twice, released(x @ head.T, Release()))
    assert found.sound
    np.testing.assert_allclose(found.head[:, :10], found.head[:, 10:20], atol=1e-5)
    np.testing.assert_allclose(found.head[:, :10] + found.head[:, 10:20], head[:, :10], atol=1e-5)


def test_answers_of_no_head_are_not_taken_for_one() -> None:
    rng = np.random.default_rng(4)
    _, x = head_and_rows(4, 600, 40)
    found = recover(x, released(rng.normal(size=(600, 5)), Release()))
    assert found.residual > 0.5
    assert not found.sound
    head, x = head_and_rows(5, 600, 40)
    noised = recover(x, released(x @ head.T + 0.1 * rng.normal(size=(600, 5)), Release()))
    assert not noised.sound


def test_more_digits_reveal_more_and_the_residual_knows() -> None:
    head, x = head_and_rows(6, 600, 40)
    found = [recover(x, released(x @ head.T, release), release.unit) for release in map(digits, (2, 3, 4, 5, 6))]
    errors = [error(one.head, head) for one in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]
    residuals = [one.residual for one in found]
    assert residuals == sorted(residuals, reverse=True)
    assert found[-1].sound
    assert not found[0].sound


def digits(number: int) -> Release:
    return Release(digits=number)


def test_small_probabilities_that_were_rounded_weigh_little() -> None:
    """Least squares on all logarithms alike is swamped by the error of small probabilities."""
    head, x = head_and_rows(7, 600, 40, scale=3.0)
    release = Release(digits=5)
    answers = released(x @ head.T, release)
    logs = np.log(np.maximum(answers, release.unit / 4))
    plain = np.linalg.lstsq(x, logs - logs.mean(axis=1, keepdims=True), rcond=None)[0].T
    assert error(recover(x, answers, release.unit).head, head) < error(plain, head) / 10


def test_with_references_every_further_digit_brings_the_head_closer(grow: Grow) -> None:
    """Reached: 5.4 % of the head's norm at three decimals, .07 % at six; the references' mean is 16 % off."""
    evidence = grow(0)
    assert evidence.features is not None
    assert evidence.head is not None
    assert evidence.reference_heads is not None
    x = with_ones(evidence.features)
    heads = centred(np.concatenate([evidence.head[None], evidence.reference_heads]))
    mean = error(heads[1:].mean(axis=0), heads[0])
    errors = []
    for number in (1, 2, 3, 4, 5, 6):
        found = recover_rounded(x, heads, digits(number))
        assert found.shape == heads.shape
        errors.append(error(found[0], heads[0]))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1.01 * mean
    assert errors[2] < mean / 2
    assert errors[-1] < 2e-3


def test_rounding_to_seven_decimals_hides_nothing_from_an_attacker_with_references(grow: Grow, auc: Auc) -> None:
    areas = []
    for release in (digits(7), Release()):
        view = view_of(grow(1), release)
        scores = ATTACKS["span_lira"].score(view)
        areas.append(auc(scores[view.member], scores[view.holdout]))
    assert areas[0] == pytest.approx(areas[1], abs=0.01)


def test_the_weighted_fit_solves_its_normal_equations() -> None:
    """Against one dense system in all classes, with a constant for each row, by the pseudoinverse."""
    rng = np.random.default_rng(8)
    x, classes = with_ones(rng.normal(size=(40, 4))), 3
    logs, weight = rng.normal(size=(2, 40, classes)), rng.uniform(0.1, 2, (40, classes))
    root = rng.normal(size=(5, 5))
    prior = root @ root.T
    found = _weighted(x, logs, weight, prior)
    system, right = np.zeros((classes, 5, classes, 5)), np.zeros((2, classes, 5))
    for row in range(40):
        share = weight[row] / weight[row].sum()
        pull = np.diag(weight[row]) - np.outer(weight[row], share)
        system += np.einsum("ce,d,f->cdef", pull, x[row], x[row])
        right += np.einsum("ce,he,d->hcd", pull, logs[:, row], x[row])
    system += np.einsum("ce,df->cdef", np.eye(classes), prior)
    centring = np.kron(np.eye(classes) - 1 / classes, np.eye(5))
    dense = np.linalg.pinv(centring @ system.reshape(classes * 5, -1) @ centring)
    expected = (dense @ right.reshape(2, -1).T).T.reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
