"""The fairness check on planted truths: unfair clients and groups are found, fair ones are not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.fairness import BACKBONE, CANDIDATE, CENTRALISED, NO_BACKBONE, Fairness, FairnessMetric
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Job, Probe, Score
from privacy_gate.verdict.judgement import CheckResult, Measurement

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


def answers(rng: np.random.Generator, data: AuditData, accuracy: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
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


def test_the_gap_is_divided_between_backbone_and_training() -> None:
    rng = np.random.default_rng(2)
    data = table(rng, clients=False)
    assert data.group is not None
    unfair, fair = 0.85 - 0.2 * (data.group == "f"), np.full(data.rows, 0.8)
    models = {
        CANDIDATE: answers(rng, data, unfair),
        "member": answers(rng, data, unfair),
        "population": answers(rng, data, fair),
    }
    found = measure(Fairness(), data, models, federated=True)
    low, high = only(found, "inherited_group_gap", CENTRALISED).low, only(found, "inherited_group_gap", BACKBONE).high
    assert low is not None
    assert high is not None
    assert low > 0.13 > high
    assert only(found, "group_gap").value == pytest.approx(0.2, abs=0.05)
    parts = {one.subject: one for one in found.measurements if one.metric == "group_gap_part"}
    assert list(parts) == ["inherited from the frozen backbone", "added by fine-tuning", "added by federation"]
    assert parts["added by fine-tuning"].low is not None
    assert parts["added by fine-tuning"].low > 0.1
    for name in ("inherited from the frozen backbone", "added by federation"):
        assert parts[name].value == pytest.approx(0, abs=0.05)
    assert sum(one.value or 0 for one in parts.values()) == pytest.approx(only(found, "group_gap").value)
    (told,) = [note for note in found.notes if "] added by fine-tuning" in note]
    assert "m (" in told
    assert "over f (" in told


def test_a_candidate_without_federation_gets_the_parts_that_its_evidence_allows() -> None:
    rng = np.random.default_rng(6)
    data = table(rng)
    models = {name: answers(rng, data, np.full(data.rows, 0.8)) for name in (CANDIDATE, "population")}
    found = measure(Fairness(), data, models)
    parts = [one.subject for one in found.measurements if one.metric == "group_gap_part"]
    assert parts == ["inherited from the frozen backbone", "added by fine-tuning"]
    assert only(found, "inherited_client_std", BACKBONE).measured
    alone = replace(data, split=np.where(data.split == Split.POPULATION, Split.HOLDOUT, data.split).astype(np.int8))
    found = measure(Fairness(), alone, models)
    assert not [one for one in found.measurements if one.metric == "group_gap_part"]
    assert NO_BACKBONE in found.notes


@pytest.mark.parametrize("adaptation", ["full", "film", "scratch"])
def test_networks_are_compared_with_a_plain_head_on_the_backbone(adaptation: str) -> None:
    weights = None if adaptation == "scratch" else {"uri": "w", "sha256": "a" * 64}
    fields = recipe(federated=False).model_dump(mode="json", exclude={"backbone", "input", "adaptation", "head"})
    how = parse(
        fields
        | {"backbone": {"name": "resnet18", "weights": weights}, "adaptation": adaptation}
        | {"input": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}, "augmentation": {"flip": True}},
        Recipe,
        "recipe",
    )
    data = replace(table(np.random.default_rng(7)), embedding=None)
    jobs = Fairness().jobs(Subject(recipe=how, artifact="a" * 64, data=data, logged={}))
    probes = [job for job in jobs if isinstance(job, Probe)]
    assert [job.rows for job in probes] == ([] if adaptation == "scratch" else ["population"])
    assert all((job.recipe.adaptation, job.recipe.augmentation) == ("head", None) for job in probes)


def test_exchangeable_clients_match_no_contribution() -> None:
    """Rows that are hard by chance are hard for every model, and are no match."""
    runs, what = 16, ("accuracy of what each trains alone", "examples")
    values = np.zeros((runs, 2))
    for seed in range(runs):
        rng = np.random.default_rng([8, seed])
        data = table(rng, groups=False)
        sizes = rng.choice(CLIENTS, data.rows, p=np.linspace(1, 2, CLIENTS) / 15)
        data = replace(data, client=np.array([f"c{k}" for k in sizes]))
        hard = rng.random(data.rows) < 0.2
        models = {f"client:c{k}": answers(rng, data, 0.7 - 0.5 * hard) for k in range(CLIENTS)}
        models[CANDIDATE] = answers(rng, data, 0.95 - 0.7 * hard)
        found = measure(Fairness(attribution=False), data, models, federated=True)
        values[seed] = [only(found, "contribution_match", name).value for name in what]
    assert (np.abs(values.mean(axis=0)) < 3 * values.std(axis=0) / np.sqrt(runs)).all()


def test_clients_who_bring_more_and_are_served_better_match() -> None:
    rng = np.random.default_rng(11)
    data = table(rng, groups=False)
    models = {f"client:c{k}": answers(rng, data, np.full(data.rows, 0.5 + 0.03 * k)) for k in range(CLIENTS)}
    models[CANDIDATE] = answers(rng, data, 0.5 + 0.04 * (np.arange(data.rows) % CLIENTS))
    found = measure(Fairness(attribution=False), data, models, federated=True)
    match = only(found, "contribution_match", "accuracy of what each trains alone")
    assert match.low is not None
    assert match.low > 0.7
    assert "contribution_match" not in get_args(FairnessMetric), "reported, never limited"


def test_a_note_says_how_different_clients_are() -> None:
    rng = np.random.default_rng(9)
    data = table(rng, groups=False)
    alike = measure(Fairness(attribution=False), data, {CANDIDATE: answers(rng, data, np.full(data.rows, 0.8))})
    split = replace(data, client=np.array([f"c{one}" for one in data.label]))
    apart = measure(Fairness(attribution=False), split, {CANDIDATE: answers(rng, data, np.full(data.rows, 0.8))})
    assert "by 0.0" in alike.notes[0]
    assert "by 0.75 in total variation" in apart.notes[0]


def test_fewer_than_ten_clients_are_measured_and_nothing_is_nan() -> None:
    rng = np.random.default_rng(10)
    data = table(rng, groups=False)
    few = replace(data, client=np.array([f"c{row % 3}" for row in range(data.rows)]))
    models = {f"client:c{k}": answers(rng, data, np.full(data.rows, 0.6)) for k in range(3)}
    models[CANDIDATE] = answers(rng, data, np.full(data.rows, 0.8))
    found = measure(Fairness(attribution=False), few, models, federated=True)
    assert only(found, "worst_decile_gap").measured
    assert "found 3" in str(only(found, "contribution_match", "examples").reason)
    assert np.isfinite([one.value for one in found.measurements if one.value is not None]).all()


@pytest.mark.parametrize(("alone", "expected"), [(0.6, 1.0), (0.95, 0.0)])
def test_clients_that_would_fare_better_alone_are_counted(alone: float, expected: float) -> None:
    rng = np.random.default_rng(3)
    data = table(rng, groups=False)
    models = {f"client:c{k}": answers(rng, data, np.full(data.rows, alone)) for k in range(CLIENTS)}
    models[CANDIDATE] = answers(rng, data, np.full(data.rows, 0.8))
    found = measure(Fairness(attribution=False), data, models, federated=True)
    assert only(found, "client_benefit").value == expected


def test_what_the_table_lacks_is_not_measured_or_left_out_with_a_note_if_allowed() -> None:
    rng = np.random.default_rng(4)
    data = table(rng, clients=False, groups=False)
    models = {CANDIDATE: answers(rng, data, np.full(data.rows, 0.8))}
    lax = measure(Fairness(required=False), data, models)
    assert not lax.measurements
    assert set(lax.left_out) == set(get_args(FairnessMetric))
    assert len(lax.notes) == 3
    strict = measure(Fairness(), data, models)
    assert {one.metric for one in strict.measurements if one.reason} == {
        "client_std",
        "worst_decile_gap",
        "client_benefit",
        "group_gap",
        "equalized_odds",
    }


def test_a_client_with_members_does_not_pass_for_lack_of_holdout_rows() -> None:
    """Fixed: if the worst served client's holdout rows become population, the gap is no longer that of the others."""
    rng = np.random.default_rng(12)
    data = table(rng, groups=False)
    assert data.client is not None
    right = 0.85 - 0.5 * (data.client == "c3")
    models = {f"client:c{k}": answers(rng, data, np.full(data.rows, 0.6)) for k in range(CLIENTS)}
    models[CANDIDATE] = answers(rng, data, right)
    seen = measure(Fairness(attribution=False), data, models, federated=True)
    assert (only(seen, "worst_decile_gap").low or 0) > 0.2
    mine = np.flatnonzero((data.split == Split.HOLDOUT) & (data.client == "c3"))
    for left, unmeasured in (
        (0, {"client_std", "worst_decile_gap", "client_benefit"}),
        (1, {"client_std", "worst_decile_gap"}),
    ):
        split = data.split.copy()
        split[mine[left:]] = Split.POPULATION
        found = measure(Fairness(attribution=False), replace(data, split=split), models, federated=True)
        reasons = {one.metric: str(one.reason) for one in found.measurements if not one.measured}
        assert reasons.keys() & get_args(FairnessMetric) == unmeasured | {"group_gap", "equalized_odds"}
        assert all("of every client: 1 of 10 have fewer, the first is 'c3'" in reasons[metric] for metric in unmeasured)
        assert not found.left_out


def test_a_group_with_members_does_not_pass_for_lack_of_holdout_rows() -> None:
    rng = np.random.default_rng(13)
    data = table(rng, clients=False)
    assert data.group is not None
    models = {name: answers(rng, data, np.full(data.rows, 0.8)) for name in (CANDIDATE, "population")}
    split = np.where((data.split == Split.HOLDOUT) & (data.group == "f"), Split.POPULATION, data.split)
    found = measure(Fairness(), replace(data, split=split.astype(np.int8)), models)
    for metric, subject in (("group_gap", ""), ("equalized_odds", ""), ("inherited_group_gap", BACKBONE)):
        assert "needs n >= 1 holdout rows of every group: 1 of 2 have fewer, the first is 'f'" in str(
            only(found, metric, subject).reason
        )
    assert not [one for one in found.measurements if one.metric == "group_gap_part"]


def test_a_class_of_a_group_with_members_does_not_pass_for_lack_of_holdout_rows() -> None:
    """Fixed: a group whose worst served class has no holdout rows is no longer judged by its other classes."""
    rng = np.random.default_rng(15)
    data = table(rng, clients=False)
    assert data.group is not None
    badly = (data.group == "f") & (data.label == 2)
    models = {name: answers(rng, data, 0.9 - 0.9 * badly) for name in (CANDIDATE, "population")}
    assert (only(measure(Fairness(), data, models), "equalized_odds").low or 0) > 0.1
    split = np.where((data.split == Split.HOLDOUT) & badly, Split.POPULATION, data.split).astype(np.int8)
    found = measure(Fairness(), replace(data, split=split), models)
    for metric, subject in (("equalized_odds", ""), ("inherited_equalized_odds", BACKBONE)):
        assert only(found, metric, subject).reason == (
            "needs n >= 1 holdout rows of every class of every group: 1 of 8 have fewer, the first is 'f, class 2'"
        )
    assert only(found, "group_gap").measured
    nobody = np.where(badly, Split.POPULATION, data.split).astype(np.int8)
    spared = only(measure(Fairness(), replace(data, split=nobody), models), "equalized_odds")
    assert spared.measured, "a group without such members has nobody of that class to serve"


def test_clients_that_are_only_in_the_population_are_ignored() -> None:
    rng = np.random.default_rng(14)
    data = table(rng)
    assert data.client is not None
    assert data.group is not None
    population = data.split == Split.POPULATION
    data = replace(
        data, client=np.where(population, "public", data.client), group=np.where(population, "not stated", data.group)
    )
    found = measure(Fairness(attribution=False), data, {CANDIDATE: answers(rng, data, np.full(data.rows, 0.8))})
    assert only(found, "client_std").measured
    assert only(found, "group_gap").measured
