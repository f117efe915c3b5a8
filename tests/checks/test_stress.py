"""Stress without anybody's will: what costs a federation is found, what costs nothing passes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.base.federations import NOT_SIMULATED
from privacy_gate.checks.stress import SystemStress
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.jobs.digests import describe, digest
from privacy_gate.jobs.kinds import Federate
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import CheckResult, Limit, Status, judged_status

METRICS = ["heterogeneity_drop", "gone_drop", "absent_drop", "stale_drop"]


def recipe(**federation: Any) -> Recipe:
    fields = {
        "backbone": {"name": "identity"},
        "classes": 10,
        "optimizer": {"name": "sgd", "lr": 0.5},
        "epochs": 1,
        "batch_size": 32,
        "federation": {"clients": {"partition": "iid", "count": 10}, "rounds": 60, "steps": 1} | federation,
    }
    return parse(fields, Recipe, "recipe")


def check(**settings: Any) -> SystemStress:
    return parse({"check": "system_stress"} | settings, SystemStress, "policy")


@pytest.fixture(scope="module")
def digits() -> AuditData:
    """Three clients of the column hold three, three and four classes each."""
    x, y = load_digits(return_X_y=True)
    split = np.full(len(x), Split.HOLDOUT, dtype=np.int8)
    split[np.random.default_rng(0).permutation(len(x))[:900]] = Split.MEMBER
    return AuditData(
        ids=np.array([f"d{row}" for row in range(len(x))]),
        label=y.astype(np.int64),
        split=split,
        digest="d" * 64,
        embedding=(x / 16).astype(np.float32),
        client=np.array(["north", "south", "west"])[np.minimum(y // 3, 2)],
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def measured(how: SystemStress, made: Recipe, data: AuditData, store: Store) -> CheckResult:
    subject = Subject(recipe=made, artifact="a" * 64, data=data, logged={})
    run([job for job in how.jobs(subject) if not store.has(job)], Inputs(data, Path()), Machine(threads=1), store)
    return how.measure(subject, store.get, 0.95)


def figures(result: CheckResult) -> Mapping[str, Any]:
    assert [one.metric for one in result.measurements] == METRICS
    return {one.metric: one for one in result.measurements}


def test_few_steps_bear_all_of_it_and_long_local_training_breaks_on_unlike_clients(
    digits: AuditData, store: Store
) -> None:
    borne = measured(check(), recipe(), digits, store)
    found = figures(borne)
    for metric in ("gone_drop", "absent_drop", "stale_drop"):
        assert judged_status(found[metric], Limit(max=0.1)) is Status.MET, metric
    broken = figures(measured(check(uneven=0.05), recipe(steps=40, rounds=10), digits, store))
    assert broken["heterogeneity_drop"].low > 0
    assert broken["heterogeneity_drop"].value > found["heterogeneity_drop"].value
    alike, unlike = (float(note.rpartition("by ")[2].split()[0]) for note in borne.notes)
    assert alike < 0.1
    assert unlike > 0.5


def test_losing_the_only_client_with_three_classes_costs_accuracy(digits: AuditData, store: Store) -> None:
    named = recipe(clients={"partition": "column"})
    found = figures(measured(check(clients="recipe", seeds=3), named, digits, store))
    assert found["gone_drop"].low > 0.2  # each seed loses one of three clients, and what it alone knew
    assert found["gone_drop"].value > found["absent_drop"].value  # who is back in the next round is not forgotten


def test_a_stress_that_affects_no_client_is_not_measured(digits: AuditData, store: Store) -> None:
    found = figures(measured(check(gone=0.04, absent=0.04, stale=0.04, seeds=3), recipe(), digits, store))
    assert all("affects no client" in str(found[metric].reason) for metric in METRICS[1:])
    alone = recipe(rounds=5, participation=0.1)
    found = figures(measured(check(seeds=3), alone, digits, store))
    assert found["gone_drop"].measured
    assert all("affects no client" in str(found[metric].reason) for metric in ("absent_drop", "stale_drop"))


def test_federations_without_stress_keep_the_names_of_their_results(digits: AuditData) -> None:
    subject = Subject(recipe=recipe(), artifact="a" * 64, data=digits, logged={})
    jobs = [job for job in check().jobs(subject) if isinstance(job, Federate)]
    assert len(jobs) == len(set(map(digest, jobs))) == 6 * 5
    assert {"stress" in describe(job) for job in jobs if job.stress is None} == {False}
    assert all(describe(job)["stress"] == job.stress for job in jobs if job.stress is not None)


def test_only_a_stress_that_the_rule_allows_is_measured(digits: AuditData, store: Store) -> None:
    krum = recipe(rounds=5, aggregator={"name": "multi_krum", "tolerates": 3})
    found = figures(measured(check(seeds=3), krum, digits, store))
    for metric in ("gone_drop", "absent_drop"):
        assert "at least 9 updates a round, found 7" in found[metric].reason
    for metric in ("heterogeneity_drop", "stale_drop"):
        assert found[metric].measured
    # Of the recipe's twenty clients bulyan would join enough, of the study's ten it does not.
    bulyan = recipe(aggregator={"name": "bulyan", "tolerates": 2}, clients={"partition": "iid", "count": 20})
    subject = Subject(recipe=bulyan, artifact="a" * 64, data=digits, logged={})
    assert check().jobs(subject) == []
    result = check().measure(subject, dict[Any, Any]().__getitem__, 0.95)
    assert all("at least 11 updates" in str(one.reason) for one in figures(result).values())
    assert result.notes == ()


def test_without_a_federation_it_is_undecided_or_left_out_by_leave(digits: AuditData) -> None:
    alone = recipe().model_copy(update={"federation": None})
    subject = Subject(recipe=alone, artifact="a" * 64, data=digits, logged={})
    assert check().jobs(subject) == []
    spared = check(required=False).measure(subject, dict[Any, Any]().__getitem__, 0.95)
    assert (spared.measurements, spared.left_out) == ((), tuple(METRICS))
    found = figures(check().measure(subject, dict[Any, Any]().__getitem__, 0.95))
    assert {judged_status(one, Limit(max=1.0)) for one in found.values()} == {Status.NOT_MEASURED}


def test_a_federation_that_a_program_trains_is_not_stood_in_for(digits: AuditData) -> None:
    fields = recipe().model_dump(mode="json") | {"adaptation": "command", "optimizer": {"name": "adam", "lr": 0.1}}
    subject = Subject(recipe=parse(fields, Recipe, "recipe"), artifact="a" * 64, data=digits, logged={})
    assert check().jobs(subject) == []
    found = figures(check().measure(subject, dict[Any, Any]().__getitem__, 0.95))
    assert {one.reason for one in found.values()} == {NOT_SIMULATED}


def test_clients_of_a_column_that_is_not_named_are_a_mistake_of_the_manifest(digits: AuditData) -> None:
    named = recipe(clients={"partition": "column"})
    subject = Subject(recipe=named, artifact="a" * 64, data=replace(digits, client=None), logged={})
    with pytest.raises(DatasetError, match="the data manifest has none"):
        check(clients="recipe").jobs(subject)
