"""Every model as target by every attack that can: equal to the double loop."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.every_model import EVERY_MODEL, bavaria_every_model, rmia_every_model
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.dossier.dataset import Split

Plant = Callable[..., MembershipEvidence]


def alone(phi: Floats, included: Bools, population: Floats, target: int) -> MembershipEvidence:
    """The evidence of one model as candidate, all others as its references; population rows come last.

    phi stands for any statistic of rows and models: it is the gradient span too.
    """
    others = np.arange(len(phi)) != target
    every, rows = np.concatenate([phi, population], axis=1), phi.shape[1] + population.shape[1]
    seen = np.concatenate([included, np.zeros(population.shape, dtype=bool)], axis=1)
    split = np.full(rows, Split.POPULATION, dtype=np.int8)
    split[: phi.shape[1]] = np.where(included[target], Split.MEMBER, Split.HOLDOUT)
    return MembershipEvidence(
        target=every[target],
        reference=every[others],
        included=seen[others],
        label=np.zeros(rows, dtype=np.int64),
        split=split,
        logits=np.zeros((rows, 2)),
        span=every[target],
        reference_span=every[others],
        right=every[target] > 0,
        reference_right=every[others] > 0,
    )


def pieces(evidence: MembershipEvidence, *, span: bool = False) -> tuple[Floats, Bools, Floats]:
    """phi, or the gradient span, and training sets of all models on audited rows, and the former on population rows."""
    phi = np.concatenate([evidence.target[None], evidence.reference])
    if span:
        assert evidence.span is not None
        assert evidence.reference_span is not None
        phi = np.concatenate([evidence.span[None], evidence.reference_span])
    included = np.concatenate([evidence.member[None], evidence.included])
    return phi[:, evidence.pool], included[:, evidence.pool], phi[:, evidence.population]


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_it_equals_the_double_loop(name: str, plant: Plant) -> None:
    evidence = plant(0, leak=1.0, references=23, pool=60, population=150, inclusion=0.5)
    phi, included, population = pieces(evidence, span=name == "span_lira")
    evidence = replace(evidence, right=evidence.target > 0, reference_right=evidence.reference > 0)
    found = EVERY_MODEL[name](evidence)
    assert found.shape == phi.shape
    for target in range(len(phi)):
        naive = ATTACKS[name].score(alone(phi, included, population, target))[: phi.shape[1]]
        np.testing.assert_allclose(found[target], naive, rtol=1e-9, atol=1e-9)


def test_probabilities_too_small_to_subtract_are_still_told_apart() -> None:
    rng = np.random.default_rng(0)
    included = rng.random((9, 30)) < 0.5
    included[:4] = (np.arange(4)[:, None] + np.arange(30)) % 2
    phi = rng.normal(-60, 3, included.shape)
    phi[2] = 5.0  # beside it every other model's probability is lost in the last digit
    population = rng.normal(-60, 3, (9, 200))
    found = rmia_every_model(phi, included, population)
    naive = ATTACKS["rmia"].score(alone(phi, included, population, 2))[:30]
    np.testing.assert_allclose(found[2], naive, rtol=1e-9)


def test_a_row_left_without_a_side_has_no_score_and_spoils_no_other(plant: Plant) -> None:
    phi, included, population = pieces(plant(4, references=12, pool=40, population=100))
    included[:, 0] = False
    included[5, 0] = True
    scored: list[Any] = [bavaria_every_model(phi, included), rmia_every_model(phi, included, population)]
    for found in scored:
        assert np.isnan(found[5, 0])
        assert np.isfinite(found[:, 1:]).all()


def test_a_leak_is_seen_if_probabilities_are_too_small_for_floats() -> None:
    """Heads that memorised their rows give other rows probabilities of exp(-900), which float64 holds as 0."""
    rng = np.random.default_rng(1)
    included = rng.random((16, 400)) < 0.5
    included[:4] = (np.arange(4)[:, None] + np.arange(400)) % 2
    phi = -900 + 3 * rng.normal(size=400) + rng.normal(size=included.shape) + 3 * included
    population = -900 + 3 * rng.normal(size=200) + rng.normal(size=(16, 200))
    found = rmia_every_model(phi, included, population)
    assert np.isfinite(found).all()
    assert (found[included][:, None] > found[~included][::7]).mean() > 0.95
    for target in (0, 7, 15):
        naive = ATTACKS["rmia"].score(alone(phi, included, population, target))[:400]
        np.testing.assert_allclose(found[target], naive, rtol=1e-9)
