"""What a study believes of rules is what they do: whom they heed, and how many updates they need."""

import numpy as np
import pytest
import torch

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.base.federations import Federations
from privacy_gate.checks.base.rules import HEEDFUL, ROBUST, Study
from privacy_gate.compute.runners.federate import rule_of
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.federation import Aggregator
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.rules.aggregators import AGGREGATORS, PREAGGREGATIONS
from privacy_gate.simulation.rules.known import Known


def scene(updates: int, seed: int = 0) -> tuple[torch.Tensor, Known]:
    """Updates (n, 6) of dice, and all that a server may know of them."""
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(updates, 6)))
    known = Known(
        counts=torch.ones(updates),
        previous=torch.zeros(6, dtype=torch.float64),
        root=torch.ones(6, dtype=torch.float64),
        losses=torch.ones(updates),
        order=torch.arange(updates),
        lr=0.1,
    )
    return drawn, known


@pytest.mark.parametrize("name", [*AGGREGATORS, *PREAGGREGATIONS])
def test_rules_that_heed_how_many_attack_are_those_that_are_listed(name: str) -> None:
    rule, heeds = {**AGGREGATORS, **PREAGGREGATIONS}[name], False
    for seed in range(20):
        updates, known = scene(11, seed)
        heeds |= not torch.equal(rule(updates, 0, known), rule(updates, 2, known))
    assert heeds == (name in HEEDFUL)


@pytest.mark.parametrize("rule", [*ROBUST, Aggregator(name="krum"), Aggregator(name="bulyan")], ids=str)
def test_a_rule_is_tried_if_a_round_has_enough_updates_for_it(rule: Aggregator) -> None:
    for count in range(5, 13):
        study = Study(federations(count), ("sign_flip",), 2, alternatives=True)
        told = rule.model_copy(update={"tolerates": 2})
        updates, known = scene(count)
        try:
            rule_of(told)(updates, 2, known)
        except ConfigurationError:
            assert "updates a round" in str(study.unmet(told, 2))
        else:
            assert study.unmet(told, 2) is None


def federations(count: int, participation: float = 1.0) -> Federations:
    fields = {
        "backbone": {"name": "identity"},
        "classes": 2,
        "optimizer": {"name": "sgd", "lr": 1.0},
        "epochs": 1,
        "batch_size": 32,
        "federation": {
            "clients": {"partition": "iid", "count": count},
            "rounds": 3,
            "participation": participation,
            "aggregator": {"name": "trimmed_mean", "before": ["clip"]},
        },
    }
    recipe = parse(fields, Recipe, "recipe")
    assert recipe.federation is not None
    data = AuditData(np.array(["a"]), np.zeros(1, int), np.zeros(1, np.int8), "d" * 64, embedding=np.zeros((1, 2)))
    return Federations(Subject(recipe, "a" * 64, data, {}), recipe.federation, "recipe", 0.5, 3)


def test_the_recipes_own_rule_appears_twice_if_tolerates_changes_it_and_fewer_updates_leave_fewer_rules() -> None:
    study = Study(federations(10), ("sign_flip",), 2, alternatives=True)
    own, tolerant, *others = study.rules()
    assert (own.tolerates, tolerant.tolerates, study.label(own), study.label(tolerant)) == (
        0,
        2,
        "clip + trimmed_mean",
        "clip + trimmed_mean with tolerates: 2",
    )
    assert [rule.name for rule in others] == [rule.name for rule in ROBUST]
    assert {rule.tolerates for rule in others} == {2}
    assert Study(federations(10, participation=0.3), ("sign_flip",), 2, alternatives=True).rules() == [own]
