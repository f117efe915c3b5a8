"""Attacks on labels: equal to counting, and as good as the labels that they see."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.labels import consistency, gap, label_lira
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.membership import auc

Plant = Callable[..., MembershipEvidence]
LABEL = Release(outputs="label")


@pytest.mark.parametrize("attack", [label_lira, consistency, gap])
def test_a_planted_leak_is_found_and_none_is_chance(
    attack: Callable[[MembershipEvidence], Floats], plant: Plant, innocent: list[MembershipEvidence]
) -> None:
    for seed in range(5):
        evidence = view_of(plant(seed, leak=2.0, pool=1000), LABEL)
        scores = attack(evidence)
        found = auc(scores[evidence.member], scores[evidence.holdout], 0.99)
        assert found.low is not None
        assert found.low > 0.55
    held = 0
    for evidence in innocent:
        scores = attack(view_of(evidence, LABEL))
        chance = auc(scores[evidence.member], scores[evidence.holdout], 0.99)
        held += chance.low is not None and chance.high is not None and chance.low <= 0.5 <= chance.high
    assert held >= 95


def test_the_label_ratio_is_that_of_counted_rates(plant: Plant) -> None:
    evidence = plant(0, leak=1.0, references=12, pool=60, population=10)
    assert evidence.right is not None
    assert evidence.reference_right is not None
    found = label_lira(evidence)
    assert np.isnan(found[evidence.population]).all()
    for row in np.flatnonzero(evidence.pool):
        rates = []
        for side in (evidence.included[:, row], ~evidence.included[:, row]):
            hits = evidence.reference_right[side, row]
            rate = (hits.sum() + 0.5) / (len(hits) + 1)
            rates.append(rate if evidence.right[row] else 1 - rate)
        assert found[row] == pytest.approx(np.log(rates[0] / rates[1]), rel=1e-12)


def test_consistency_counts_deviations_of_references_without_the_row(plant: Plant) -> None:
    evidence = plant(1, leak=1.0, references=12, pool=60, population=10)
    assert evidence.steady is not None
    assert evidence.reference_steady is not None
    outside = [evidence.reference_steady[~evidence.included[:, row], row] for row in range(70)]
    audited = [values for values, inside in zip(outside, evidence.pool, strict=True) if inside]
    squares = [((values - values.mean()) ** 2).sum() for values in audited]
    pooled = sum(squares) / sum(map(len, audited))
    for row, values in enumerate(outside):
        spread = np.sqrt((((values - values.mean()) ** 2).sum() + 4 * pooled) / (len(values) + 4))
        expected = (evidence.steady[row] - values.mean()) / spread
        assert consistency(evidence)[row] == pytest.approx(expected, rel=1e-9)


def test_labels_that_are_right_of_every_model_say_nothing(plant: Plant) -> None:
    evidence = plant(2)
    sure = {"right": np.ones_like(evidence.right), "reference_right": np.ones_like(evidence.reference_right)}
    steady = {"steady": np.ones_like(evidence.steady), "reference_steady": np.ones_like(evidence.reference_steady)}
    same = replace(evidence, **sure, **steady)
    assert np.ptp(gap(same)) == 0
    np.testing.assert_array_equal(consistency(same), 0)
    # What is left is that rates of more models are surer: far less than one label says.
    assert np.abs(label_lira(same)[same.pool]).max() < 0.2


@pytest.mark.parametrize(
    ("name", "missing", "reason"),
    [
        ("gap", ["right"], "needs the candidate's labels, found none"),
        ("label_lira", ["right"], "needs the candidate's labels, found none"),
        ("label_lira", ["reference_right"], "needs the references' labels, found none"),
        ("consistency", ["steady", "reference_steady"], "needs labels of changed images, which are made for"),
    ],
)
def test_missing_labels_are_named_before_and_refused_after(
    name: str, missing: list[str], reason: str, plant: Plant
) -> None:
    evidence = plant(0)
    bare = replace(evidence, **dict.fromkeys(missing))
    assert str(ATTACKS[name].unmet(bare)).startswith(reason)
    with pytest.raises(EvidenceError, match="found none"):
        ATTACKS[name].score(bare)
