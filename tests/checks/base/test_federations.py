"""Federations that a subset of the table's rows leaves with too few clients: said before anything is computed."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate.auditing.audit import plan
from privacy_gate.auditing.policy import Policy, PolicyInForce
from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.base.federations import untrainable_references
from privacy_gate.checks.stress import SystemStress
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.alternatives import families
from privacy_gate.dossier.candidate import Candidate, Dossier
from privacy_gate.dossier.dataset import AuditData, DataManifest, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, DatasetError, UndecidedError
from privacy_gate.gate.case import Case
from privacy_gate.gate.steps import advise
from privacy_gate.jobs.kinds import Job, TrainReference, train_reference
from privacy_gate.jobs.subsets import training_sets
from privacy_gate.progress import silent
from privacy_gate.store import Store

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
MACHINE = Machine(device="cpu", threads=1)
KRUM = {"name": "krum", "tolerates": 1}  # of five clients or more
CLIENTS = 5


def table(*, rows: int = 80, smallest: int = 1) -> AuditData:
    """Half members; all clients are of one size but the last, who holds so few rows, members first."""
    client = np.array([f"c{row // 2 % (CLIENTS - 1)}" for row in range(rows)])
    client[np.arange(rows) // 2 < (smallest + 1) // 2] = "small"
    if smallest % 2:
        client[smallest] = "c0"
    rng, label = np.random.default_rng(0), np.arange(rows) // 2 % 2
    return AuditData(
        ids=np.array([f"r{row}" for row in range(rows)]),
        label=label,
        split=np.array([Split.MEMBER, Split.HOLDOUT], dtype=np.int8)[np.arange(rows) % 2],
        digest="d" * 64,
        client=client,
        embedding=(rng.normal(size=(rows, 3)) + 3 * label[:, None]).astype(np.float32),
    )


def recipe(clients: dict[str, Any] | None = None, rule: dict[str, Any] | None = None) -> Recipe:
    federation = {"rounds": 2, "clients": clients or {"partition": "column"}, "aggregator": rule or KRUM}
    fields = {"backbone": {"name": "identity"}, "classes": 2, "optimizer": {"name": "sgd", "lr": 0.1}}
    return parse(fields | {"epochs": 1, "batch_size": 8, "federation": federation}, Recipe, "recipe")


def case(how: Recipe, data: AuditData, folder: Path, *checks: dict[str, Any]) -> Case:
    manifest = parse(
        {"table": {"uri": "t", "sha256": "d" * 64, "format": "parquet"}, "columns": {"embedding": "x"}},
        DataManifest,
        "data",
    )
    candidate = Candidate("models:/m/1", "m", "1", folder, "a" * 64, Dossier(recipe=how, data=manifest))
    policy = parse({"name": "p", "version": 1, "release_context": "api", "checks": list(checks)}, Policy, "policy")
    rules = PolicyInForce(policy, "e" * 64, "p", NOW.isoformat())
    return Case(rules, candidate, data, Store(str(folder / "store")))


MEMBERSHIP = {"check": "membership", "references": 8, "attacks": ["loss"], "limits": {"auc": {"max": 0.9}}}
UTILITY = {"check": "utility", "limits": {"holdout_accuracy": {"min": 0.5}}}


def references(jobs: list[Job]) -> list[TrainReference]:
    return [job for job in jobs if isinstance(job, TrainReference)]


def test_references_that_miss_a_small_client_leave_the_check_unmeasured_and_the_others_are_made(tmp_path: Path) -> None:
    """References 0 and 1 are complements, so the client of one row is missed by one of the two, and so on."""
    how, data = recipe(), table()
    asked: list[Job] = [train_reference(how, data.digest, index) for index in range(8)]
    with pytest.raises(ConfigurationError, match="needs at least 5 updates a round, found 4"):
        run(asked, Inputs(data, tmp_path), MACHINE, Store(str(tmp_path / "unasked")))
    opened = case(how, data, tmp_path, MEMBERSHIP, UTILITY)
    assert references(opened.jobs) == []
    told = {**{job: {"logits": np.eye(2)[data.label]} for job in opened.jobs}}
    for job, arrays in told.items():
        opened.store.put(job, arrays)
    report = opened.audit(NOW, silent)
    assert report.exit_code == 4
    found = {finding.measurement.metric: finding for finding in report.findings}
    assert str(found["holdout_accuracy"].status) == "met"
    assert str(found["auc"].measurement.reason).startswith("the recipe's federation cannot train 4 of 8 ")
    assert "krum with tolerates: 1 needs at least 5 updates a round, found 4" in str(found["auc"].measurement.reason)
    assert any(
        note.startswith("membership measured nothing: the recipe's federation")
        for note in report.checks[0].result.notes
    )


def test_if_no_reference_misses_a_client_all_are_trained(tmp_path: Path) -> None:
    data = table(smallest=20)
    opened = case(recipe(), data, tmp_path, MEMBERSHIP)
    jobs = references(opened.jobs)
    assert len(jobs) == 8
    run(list(jobs), Inputs(data, tmp_path), MACHINE, opened.store)


@pytest.mark.parametrize("divisor", [1, 2])
@pytest.mark.parametrize("smallest", [1, 2, 4, 20])
def test_references_found_to_lack_clients_are_those_that_training_refuses(
    smallest: int, divisor: int, tmp_path: Path
) -> None:
    """Naive twin: each is trained by itself, and fails or does not."""
    data, how, failed = table(smallest=smallest), recipe(), 0
    jobs = [train_reference(how, data.digest, index, divisor) for index in range(6)]
    store = Store(str(tmp_path / "store"))
    for job in jobs:
        try:
            run([job], Inputs(data, tmp_path), MACHINE, store)
        except ConfigurationError:
            failed += 1
    said = untrainable_references(data, jobs)
    assert (said is None) is (failed == 0)
    assert said is None or said.startswith(f"the recipe's federation cannot train {failed} of 6 references")


def test_the_rows_a_reference_is_asked_about_are_those_it_is_trained_on(tmp_path: Path) -> None:
    data, how = table(), recipe(rule={"name": "mean"})
    jobs = [train_reference(how, data.digest, index, 2, (3, 5)) for index in range(3)]
    store = Store(str(tmp_path / "store"))
    run(list(jobs), Inputs(data, tmp_path), MACHINE, store)
    for index, rows in training_sets(data, range(3), 2, (3, 5)):
        assert np.array_equal(store.get(jobs[index])["included"], rows)


def test_advice_on_a_recipe_whose_references_lack_clients_is_undecided(tmp_path: Path) -> None:
    opened = case(recipe(), table(), tmp_path, MEMBERSHIP)
    with pytest.raises(UndecidedError, match="4 of 8 references"):
        advise(
            opened, MACHINE, references=8, families=families((), ()), epsilons=(), now=NOW, progress=silent
        )  # fmt: skip


def test_a_program_of_the_policy_s_trains_whom_it_will(tmp_path: Path) -> None:
    how, data = recipe().model_copy(update={"adaptation": "command"}), table()
    assert untrainable_references(data, [train_reference(how, data.digest, index) for index in range(8)]) is None


def test_members_too_few_for_the_clients_that_a_recipe_counts_are_refused_when_the_table_is_read(
    tmp_path: Path,
) -> None:
    clients = {"partition": "iid", "count": 10, "minimum": 5}
    how, data = recipe(clients, {"name": "mean"}), table()
    with pytest.raises(DatasetError, match="40 rows cannot give 10 clients 5 each"):
        case(how, data, tmp_path, MEMBERSHIP).jobs  # noqa: B018 - asked for
    fewer = recipe(clients | {"minimum": 4}, {"name": "mean"})
    assert references(case(fewer, data, tmp_path, MEMBERSHIP).jobs)
    law = {"check": "power_law", "references": 16, "divisors": [1, 2, 4]}
    said = untrainable_references(data, case(fewer, data, tmp_path, law).policy.checks[0].jobs(subject(fewer, data)))
    assert said is not None
    assert "32 of 48 references" in said
    assert "20 rows cannot give 10 clients 4 each" in said


def subject(how: Recipe, data: AuditData) -> Subject:
    return Subject(how, "a" * 64, data, {})


@pytest.mark.parametrize(("rows", "measured"), [(18, False), (20, True)])
def test_members_too_few_to_be_dealt_anew_leave_stress_unmeasured(rows: int, measured: bool, tmp_path: Path) -> None:
    """Five clients of a column, who are given two rows each where they are to be unlike."""
    data, how = table(rows=rows, smallest=2), recipe(rule={"name": "mean"})
    check = SystemStress(clients="recipe", seeds=3)
    jobs = check.jobs(subject(how, data))
    store = Store(str(tmp_path / "store"))
    run(jobs, Inputs(data, tmp_path), MACHINE, store)
    found = {one.metric: one for one in check.measure(subject(how, data), store.get, 0.95).measurements}
    said = found["heterogeneity_drop"].reason
    assert (said == "9 rows cannot give 5 clients 2 each: use fewer clients or a smaller minimum") is not measured
    opened = case(how, data, tmp_path, {"check": "system_stress", "clients": 6, "seeds": 3})
    assert [job for job in plan(opened.policy, opened.candidate, data) if "Federate" in type(job).__name__] == []
