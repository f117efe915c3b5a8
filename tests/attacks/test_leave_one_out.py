"""Every model as target in one pass: equal to the double loop, in bounded memory."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.leave_one_out import all_models, lira_blocks, lira_every_model
from privacy_gate.attacks.lira import lira_offline, lira_online
from privacy_gate.attacks.moments import row_blocks
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError

Plant = Callable[..., MembershipEvidence]


def alone(phi: Floats, included: Bools, target: int) -> MembershipEvidence:
    """The evidence of one model as candidate, all others as its references."""
    others = np.arange(len(phi)) != target
    return MembershipEvidence(
        target=phi[target],
        reference=phi[others],
        included=included[others],
        label=np.zeros(phi.shape[1], dtype=np.int64),
        split=np.where(included[target], Split.MEMBER, Split.HOLDOUT).astype(np.int8),
        logits=np.zeros((phi.shape[1], 2)),
    )


@pytest.mark.parametrize("variance", ["auto", "pooled", "per_example"])
@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("references", [12, 120])
def test_it_equals_the_double_loop(references: int, online: bool, variance: Any, plant: Plant) -> None:
    phi, included = all_models(plant(0, leak=1.0, references=references, pool=50, inclusion=0.5))
    included[:8] = (np.arange(8)[:, None] + np.arange(50)) % 2  # three on each side remain, whoever is left out
    found = lira_every_model(phi, included, online=online, variance=variance)
    for target in range(len(phi)):
        naive = (lira_online if online else lira_offline)(alone(phi, included, target), variance=variance)
        np.testing.assert_allclose(found[target], naive, rtol=1e-12, atol=1e-12)


def test_it_loses_no_digits_far_from_zero(plant: Plant) -> None:
    phi, included = all_models(plant(1, leak=1.0, references=40, pool=50))
    phi = np.round(phi * 2**20) / 2**20  # so that the shift itself rounds nothing
    shifted = lira_every_model(phi + 2**16, included)
    np.testing.assert_allclose(shifted, lira_every_model(phi, included), rtol=1e-7, atol=1e-9)


def test_blocks_are_the_whole(plant: Plant) -> None:
    rng = np.random.default_rng(2)
    included = rng.random((64, 40_000)) < 0.5
    phi = (rng.normal(size=included.shape) + included).astype(np.float32)
    assert len(list(row_blocks(*phi.shape))) > 2
    whole = lira_every_model(phi, included)
    np.testing.assert_allclose(whole[7], lira_online(alone(phi, included, 7)), rtol=1e-10, atol=1e-10)


def test_the_candidate_comes_first_and_rows_are_the_audited_ones(plant: Plant) -> None:
    evidence = plant(3, leak=1.0, references=16, pool=60, population=30)
    phi, included = all_models(evidence)
    assert phi.shape == included.shape == (17, 60)
    np.testing.assert_array_equal(phi[0], evidence.target[evidence.pool])
    np.testing.assert_array_equal(included[0], evidence.member[evidence.pool])
    np.testing.assert_allclose(lira_every_model(phi, included)[0], lira_online(evidence)[evidence.pool], rtol=1e-10)


def test_a_row_left_without_a_side_has_no_score_and_spoils_no_other(plant: Plant) -> None:
    phi, included = all_models(plant(4, references=12, pool=40))
    included[:, 0] = False
    included[5, 0] = True
    found = lira_every_model(phi, included)
    assert np.isnan(found[5, 0])
    assert np.isnan(found).sum() == 1


def test_no_row_seen_twice_is_refused() -> None:
    included = np.eye(3, dtype=bool)
    with pytest.raises(EvidenceError, match="two models on the same side"):
        lira_every_model(np.random.default_rng(0).normal(size=(3, 3)), included, variance="pooled")


def test_memory_does_not_grow_with_rows() -> None:
    rng = np.random.default_rng(5)
    included = rng.random((128, 60_000)) < 0.5
    phi = rng.normal(size=included.shape).astype(np.float32)
    tracemalloc.start()
    for _, scores in lira_blocks(phi, included):
        assert scores.shape[0] == 128
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
