"""Gradient norm and self-influence: equal to autograd and to retraining, honest about what they need."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from privacy_gate.arrays import Floats, Ints
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence, logit_scaled
from privacy_gate.attacks.gradient import (
    MOST_PARAMETERS,
    _augmented,
    _inverse_hessian,
    _log_mean_exp,
    _probabilities,
    gradient_norm,
    phi_change,
)
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError

RIDGE, CLASSES, WIDTH = 0.02, 4, 7


def converged(x: Floats, label: Ints, ridge: float) -> Floats:
    """Weights (C, D + 1) of the ridge softmax head, by L-BFGS to the last digit."""
    inside = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    truth = np.eye(CLASSES)[label]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(CLASSES, -1)
        z = inside @ weights.T
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        gradient = (np.exp(log_p) - truth).T @ inside / len(x) + ridge * weights
        return float(-(truth * log_p).sum() / len(x) + ridge / 2 * (weights**2).sum()), gradient.ravel()

    options: Any = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-11}
    start = np.zeros(CLASSES * inside.shape[1])
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(CLASSES, -1))


def evidence_of(x: Floats, label: Ints, split: Ints, weights: Floats, ridge: float) -> MembershipEvidence:
    logits = np.concatenate([x, np.ones((len(x), 1))], axis=1) @ weights.T
    return MembershipEvidence(
        target=logit_scaled(logits, label),
        reference=np.zeros((0, len(x))),
        included=np.zeros((0, len(x)), dtype=bool),
        label=label,
        split=split.astype(np.int8),
        logits=logits,
        features=x,
        ridge=ridge,
    )


def trained(seed: int = 0, rows: int = 120, width: int = WIDTH, ridge: float = RIDGE) -> MembershipEvidence:
    """A head that converged on the first half of the rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width))
    label = (x @ rng.normal(size=(width, CLASSES)) + rng.gumbel(size=(rows, CLASSES))).argmax(axis=1)
    split = np.where(np.arange(rows) < rows // 2, Split.MEMBER, Split.HOLDOUT)
    half = rows // 2
    return evidence_of(x, label, split, converged(x[:half], label[:half], ridge), ridge)


def test_the_gradient_norm_is_that_of_autograd() -> None:
    evidence = trained()
    assert evidence.features is not None
    inside = torch.from_numpy(np.concatenate([evidence.features, np.ones((len(evidence.label), 1))], axis=1))
    weights = torch.linalg.lstsq(inside, torch.from_numpy(evidence.logits)).solution.T.clone().requires_grad_()
    for row in range(0, len(inside), 17):
        loss = torch.nn.functional.cross_entropy((inside[row] @ weights.T)[None], torch.tensor([evidence.label[row]]))
        (gradient,) = torch.autograd.grad(loss, weights)
        assert -gradient_norm(evidence)[row] == pytest.approx(float(gradient.norm().log()), abs=1e-9)


def test_leaving_a_row_out_by_a_newton_step_is_retraining_without_it() -> None:
    evidence = trained(rows=800)
    assert evidence.features is not None
    members = evidence.member
    inverse = _inverse_hessian(_augmented(evidence)[members], _probabilities(evidence)[members], 1.0, RIDGE)
    change = phi_change(evidence, inverse, counted=members.astype(float))
    for row in np.flatnonzero(members)[::57]:
        left = members.copy()
        left[row] = False
        # The penalty of the sum stays what it was: it weighs a little more in the mean of one row less.
        ridge = RIDGE * members.sum() / left.sum()
        weights = converged(evidence.features[left], evidence.label[left], ridge)
        logits = (np.append(evidence.features[row], 1.0) @ weights.T)[None]
        retrained = logit_scaled(logits, evidence.label[row : row + 1])[0] - evidence.target[row]
        assert change[row] == pytest.approx(retrained, rel=0.02, abs=0.001)


@pytest.mark.parametrize("counted", [0.5, 0.0])
def test_a_row_counted_in_part_is_filled_up_to_one(counted: float) -> None:
    """A row's own Hessian once it counts fully, from one in which it counted by half, or not at all."""
    evidence = trained()
    inside, p, row = _augmented(evidence), _probabilities(evidence), 5
    others = np.arange(len(p)) != row
    weight = np.kron(np.diag(p[row]) - np.outer(p[row], p[row]), np.outer(inside[row], inside[row]))
    without = np.linalg.inv(_inverse_hessian(inside[others], p[others], 0.5, RIDGE))
    found, expected = (
        phi_change(evidence, np.linalg.inv(without + times * weight), np.full(len(p), times))[row]
        for times in (counted, 1.0)
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1e-18, 0.5, 3.0, 1000.0])
def test_the_mean_of_exponentials_is_exact_for_small_values_and_for_large(size: float) -> None:
    log_weight = np.log([[0.25, 0.75, 1e-300]])
    same, apart = np.full((1, 3), -size), np.array([[size, -size, 0.0]])
    assert _log_mean_exp(log_weight, same)[0] == pytest.approx(-size, rel=1e-12, abs=0)
    ratio = 3 * math.exp(-2 * size)  # log(e^s/4 + 3 e^-s/4) = s - log 4 + log1p(ratio); -s/2 to first order
    expected = -size / 2 if size < 1e-9 else size - math.log(4) + math.log1p(ratio)
    assert _log_mean_exp(log_weight, apart)[0] == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_row_that_training_never_saw_is_scored_alike_in_population_and_holdout() -> None:
    """Population rows are not in the Hessian: taken for rows that are, they look less like members, or overflow."""
    areas = []
    for seed in range(4):
        evidence = trained(seed, rows=600, width=60)
        population = np.arange(600) >= 450
        evidence = replace(evidence, split=np.where(population, Split.POPULATION, evidence.split).astype(np.int8))
        scores = ATTACKS["self_influence"].score(evidence)
        areas.append((scores[evidence.population][:, None] > scores[evidence.holdout]).mean())
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("ridge", [1e-2, 1e-5, 1e-7])
def test_leverage_near_one_overflows_no_score(ridge: float) -> None:
    """More features than rows and hardly a penalty: a row left out moves its logits by thousands of nats."""
    evidence = trained(rows=120, width=150, ridge=ridge)
    assert ATTACKS["self_influence"].unmet(evidence) is None
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores = ATTACKS["self_influence"].score(evidence)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == len(scores)


def test_members_of_a_converged_head_have_less_influence() -> None:
    found = []
    for seed in range(5):
        evidence = trained(seed)
        assert ATTACKS["self_influence"].unmet(evidence) is None
        scores = ATTACKS["self_influence"].score(evidence)
        found.append((scores[evidence.member][:, None] > scores[evidence.holdout]).mean())
    assert np.mean(found) > 0.55


def test_a_head_that_has_not_converged_is_refused_and_so_is_an_unknown_loss_or_a_large_head() -> None:
    evidence, attack = trained(), ATTACKS["self_influence"]
    assert evidence.features is not None
    zero = np.zeros((CLASSES, WIDTH + 1))
    early = evidence_of(evidence.features, evidence.label, evidence.split, zero, RIDGE)
    assert "needs a converged head" in str(attack.unmet(early))
    assert "needs a training loss" in str(attack.unmet(replace(evidence, ridge=None)))
    wide = np.ones((len(evidence.label), MOST_PARAMETERS // CLASSES))  # refused before its Hessian takes any memory
    assert "needs an L2 penalty" in str(attack.unmet(replace(evidence, ridge=1e-10)))
    assert "at most 16,384 parameters, found 16,388" in str(attack.unmet(replace(evidence, features=wide)))


@pytest.mark.parametrize("name", ["gradient_norm", "self_influence"])
def test_without_features_they_are_not_measured(name: str) -> None:
    bare = replace(trained(), features=None)
    assert "adaptation head" in str(ATTACKS[name].unmet(bare))
    with pytest.raises(EvidenceError, match="needs the backbone's features"):
        ATTACKS[name].score(bare)
