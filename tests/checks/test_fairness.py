"""The fairness check on planted truths: unfair clients and groups are found, fair ones are not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy_gate.candidate import Recipe
from privacy_gate.checks.check import Subject
from privacy_gate.checks.fairness import BACKBONE, CANDIDATE, CENTRALISED, Fairness
from privacy_gate.dataset import AuditData, Split
from privacy_gate.documents import parse
from privacy_gate.job import Job, Probe, Score
from privacy_gate.verdict import CheckResult, Measurement

CLASSES, CLIENTS = 4, 10


def recipe(federated: bool) -> Recipe:
    federation = {"federation": {"rounds": 3}} if federated else {}
    fields = {
        "backbone": {"name": "identity"},
        "classes": CLASSES,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "epochs": 1,
        "batch_size": 8,
    }
    return parse(fields | federation, Recipe, "recipe")


def table(rng: np.random.Generator, clients: bool = True, groups: bool = True) -> AuditData:
    rows = 6000
    split = np.array([Split.MEMBER] * 1500 + [Split.HOLDOUT] * 4000 + [Split.POPULATION] * 500, dtype=np.int8)
    return AuditData(
        ids=np.array([f"r{row}" for row in range(rows)]),
        label=rng.integers(0, CLASSES, rows),
        split=split,
        digest="5" * 64,
        group=rng.choice(["f", "m"], rows) if groups else None,
        client=np.array([f"c{row % CLIENTS}" for row in range(rows)]) if clients else None,
        embedding=np.zeros((rows, 2), dtype=np.float32),
    )


def answers(rng: np.random.Generator, data: AuditData, accuracy: NDArray[np.float64]) -> NDArray[np.float32]:
    """Logits of a model that is right with each row's own probability, and else anywhere."""
    right = rng.random(data.rows) < accuracy
    wrong = (data.label + rng.integers(1, CLASSES, data.rows)) % CLASSES
    return np.eye(CLASSES, dtype=np.float32)[np.where(right, data.label, wrong)]


def measure(
    check: Fairness, data: AuditData, logits: Mapping[str, NDArray[np.float32]], federated: bool = False
) -> CheckResult:
    subject = Subject(recipe=recipe(federated), artifact="a" * 64, data=data, logged={})

    def results(job: Job) -> dict[str, Any]:
        assert job in check.jobs(subject)
        name = CANDIDATE if isinstance(job, Score) else job.rows if isinstance(job, Probe) else ""
        return {"logits": logits[name]}

    return check.measure(subject, results, 0.95)


def only(result: CheckResult, metric: str, subject: str = "") -> Measurement:
    (found,) = [one for one in result.measurements if (one.metric, one.subject) == (metric, subject)]
    return found


def test_identical_clients_and_groups_show_no_gap_beyond_chance() -> None:
    quiet = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        data = table(rng)
        found = measure(Fairness(attribution=False), data, {CANDIDATE: answers(rng, data, np.full(data.rows, 0.8))})
        lows = [only(found, name).low for name in ("client_std", "worst_decile_gap", "group_gap", "equalized_odds")]
        quiet += all(low is not None and low <= 0 for low in lows)
    assert quiet >= 16


def test_a_client_and_a_group_that_are_served_worse_are_found() -> None:
    rng = np.random.default_rng(1)
    data = table(rng)
    assert data.client is not None
    assert data.group is not None
    accuracy = 0.85 - 0.3 * (data.client == "c3") - 0.2 * (data.group == "f")
    found = measure(Fairness(attribution=False), data, {CANDIDATE: answers(rng, data, accuracy)})
    for name, least in (("client_std", 0.03), ("worst_decile_gap", 0.1), ("group_gap", 0.13), ("equalized_odds", 0.05)):
        low = only(found, name).low
        assert low is not None
        assert low > least


def test_what_the_backbone_brings_is_told_from_what_training_adds() -> None:
    rng = np.random.default_rng(2)
    data = table(rng, clients=False)
    assert data.group is not None
    unfair, fair = 0.85 - 0.2 * (data.group == "f"), np.full(data.rows, 0.8)
    models = {
        CANDIDATE: answers(rng, data, unfair),
        "member": answers(rng, data, unfair),
        "population": answers(rng, data, fair),
    }
    found = measure(Fairness(), data, models)
    low, high = only(found, "inherited_group_gap", CENTRALISED).low, only(found, "inherited_group_gap", BACKBONE).high
    assert low is not None
    assert high is not None
    assert low > 0.13 > high
    assert only(found, "group_gap").value == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(("alone", "expected"), [(0.6, 1.0), (0.95, 0.0)])
def test_clients_that_would_fare_better_alone_are_counted(alone: float, expected: float) -> None:
    rng = np.random.default_rng(3)
    data = table(rng, groups=False)
    models = {f"client:c{k}": answers(rng, data, np.full(data.rows, alone)) for k in range(CLIENTS)}
    models[CANDIDATE] = answers(rng, data, np.full(data.rows, 0.8))
    found = measure(Fairness(), data, models, federated=True)
    assert only(found, "client_benefit").value == expected


def test_what_the_table_does_not_say_is_left_out_with_a_note_or_missing_where_required() -> None:
    rng = np.random.default_rng(4)
    data = table(rng, clients=False, groups=False)
    models = {CANDIDATE: answers(rng, data, np.full(data.rows, 0.8))}
    lax = measure(Fairness(), data, models)
    assert not lax.measurements
    assert len(lax.notes) == 3
    strict = measure(Fairness(required=True), data, models)
    assert {one.metric for one in strict.measurements if one.reason} == {
        "client_std",
        "worst_decile_gap",
        "client_benefit",
        "group_gap",
        "equalized_odds",
    }
