"""From stored results to a report, and the distribution of jobs to shards."""

import dataclasses
import datetime
from pathlib import Path

import numpy as np
import pytest

from privacy_gate.auditing.audit import NOT_TESTED, Shard, audit, plan, subject_of
from privacy_gate.auditing.policy import Policy, PolicyInForce
from privacy_gate.auditing.tiers import Ran, evidence_notes
from privacy_gate.checks import AnyCheck
from privacy_gate.checks.backdoor import Backdoor
from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.corruption import Corruption
from privacy_gate.checks.evasion import Evasion
from privacy_gate.checks.fairness import Fairness
from privacy_gate.checks.trajectory import TrajectoryMia
from privacy_gate.checks.utility import Utility
from privacy_gate.documents import load, parse
from privacy_gate.dossier.candidate import Candidate, Claim, Dossier
from privacy_gate.dossier.dataset import AuditData, DataManifest, Split
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe, Trainer
from privacy_gate.errors import ConfigurationError, DatasetError
from privacy_gate.jobs.batches import batches
from privacy_gate.jobs.kinds import (
    REFERENCE_BLOCK,
    Embed,
    Federate,
    Job,
    TrainReference,
    embed_jobs,
    federate,
    probe,
    train_reference,
)
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

RECIPE = load(
    """{backbone: {name: x, weights: {uri: w, sha256: "%s"}}, input: {size: 32, mean: [0, 0, 0], std: [1, 1, 1]},
    classes: 2, optimizer: {name: adam, lr: 0.1}, epochs: 1, batch_size: 1}"""
    % ("a" * 64),
    Recipe,
    "recipe",
)
JOBS: list[Job] = [
    *embed_jobs(RECIPE.backbone, RECIPE.input, "d" * 64, 1000),
    *(train_reference(RECIPE, "d" * 64, index) for index in range(100)),
]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_all_jobs_once_and_references_go_by_whole_blocks(count: int) -> None:
    parts = [Shard(index, count).take(JOBS) for index in range(1, count + 1)]
    assert sorted(JOBS.index(job) for part in parts for job in part) == list(range(len(JOBS)))
    for part in parts:
        blocks = [job.index // REFERENCE_BLOCK for job in part if not isinstance(job, Embed)]
        for block in set(blocks):
            whole = min(REFERENCE_BLOCK, 100 - block * REFERENCE_BLOCK)
            assert blocks.count(block) == whole


def test_shards_share_out_the_batches_that_tasks_are_made_of_and_none_is_idle() -> None:
    command = RECIPE.model_copy(update={"adaptation": "command"})
    jobs: list[Job] = [
        *embed_jobs(RECIPE.backbone, RECIPE.input, "d" * 64, 6 * 2048),
        *(train_reference(command, "d" * 64, index) for index in range(9)),
        *(federate(RECIPE, "d" * 64, name, 2, seed) for seed in range(5) for name in ("sign_flip", "mimic", None)),
        *(probe(RECIPE, "d" * 64, rows) for rows in ("member", "population")),
    ]
    together = batches(jobs)
    assert [len(batch) for batch in together] == [8] * 6 + [1] * 9 + [5] * 3 + [2]
    parts = [Shard(index, 3).take(jobs) for index in (1, 2, 3)]
    assert sorted(jobs.index(job) for part in parts for job in part) == list(range(len(jobs)))
    assert all(part == [job for job in jobs if job in part] for part in parts)  # in the order of the plan
    assert all(sum(batch[0] in part for part in parts) == 1 for batch in together)
    assert all(set(batch) <= set(next(part for part in parts if batch[0] in part)) for batch in together)
    for kind in (Embed, TrainReference, Federate):
        counts = [sum(isinstance(batch[0], kind) and batch[0] in part for batch in together) for part in parts]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0)])
def test_a_shard_outside_its_count_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigurationError, match="1 <= i <= n"):
        Shard(index, count)


def test_embed_jobs_cover_every_row_once() -> None:
    jobs = embed_jobs(RECIPE.backbone, RECIPE.input, "d" * 64, 1000)
    assert np.concatenate([np.arange(job.first, job.last) for job in jobs]).tolist() == list(range(1000))


SPLIT = np.array([Split.MEMBER, Split.HOLDOUT], dtype=np.int8)
BARE = AuditData(np.array(["a", "b"]), np.array([0, 1]), SPLIT, "d" * 64)
NAMED = dataclasses.replace(BARE, client=np.array(["x", "y"]))
FEDERATED = RECIPE.model_copy(update={"federation": Federation(rounds=2)})
MEASURED = CheckResult(
    measurements=(Measurement(metric="m", value=0.5, low=0.4, high=0.6, confidence=0.95, method="by hand"),)
)
LACKING = CheckResult(measurements=(not_measured("trajectory_tpr", "the log lacks its last round"),))


def told(recipe: Recipe, data: AuditData, *ran: Ran, rounds: str | None = None) -> list[str]:
    return evidence_notes(Subject(recipe, "a" * 64, data, {}, rounds=rounds), ran)


def test_the_report_names_its_evidence_tier_and_how_to_reach_the_next() -> None:
    ran, read = (Fairness(), MEASURED), (TrajectoryMia(), MEASURED)
    tiers = [told(*each, ran)[0] for each in ((RECIPE, BARE), (RECIPE, NAMED), (FEDERATED, NAMED))]
    tiers.append(told(FEDERATED, NAMED, read, rounds="b" * 64)[0])
    assert [tier[:16] for tier in tiers] == [f"evidence tier E{tier}" for tier in range(4)]
    assert "client or group columns in the data manifest to reach E1" in tiers[0]
    assert "declare the federation in the recipe" in tiers[1]
    assert "add the check trajectory" in tiers[2]
    assert tiers[3] == "evidence tier E3, the federation's recipe and its round log"
    assert told(RECIPE, BARE, (Utility(), MEASURED)) == []


def test_a_federation_is_evidence_without_a_client_column_and_a_round_log_only_if_it_can_be_used() -> None:
    assert told(FEDERATED, BARE, (Fairness(), MEASURED))[0].startswith("evidence tier E2")
    unfit = told(FEDERATED, NAMED, (TrajectoryMia(), LACKING), rounds="b" * 64)
    assert unfit == [
        "evidence tier E2, the federation's recipe; not E3: the log lacks its last round",
        "not measured by trajectory: trajectory_tpr: the log lacks its last round",
    ]


@pytest.mark.parametrize("check", [Backdoor(), Corruption(), Evasion()], ids=lambda check: check.name)
def test_checks_that_need_only_the_checkpoint_have_a_tier_too(check: AnyCheck) -> None:
    assert told(RECIPE, BARE, (check, MEASURED))[0].startswith("evidence tier E0, a checkpoint and labelled rows")


def test_limits_without_evidence_are_named_with_the_missing_part() -> None:
    gaps = [not_measured(metric, "no groups: add a column") for metric in ("group_gap", "equalized_odds")]
    partly = MEASURED.model_copy(update={"measurements": (*MEASURED.measurements, *gaps)})
    asked = Fairness(limits={"group_gap": Limit(max=0.1)})
    assert told(RECIPE, NAMED, (asked, partly))[1:] == ["not measured by fairness: group_gap: no groups: add a column"]
    assert told(RECIPE, NAMED, (Fairness(), partly))[1:] == []
    nothing = CheckResult(measurements=tuple(gaps))
    assert told(RECIPE, NAMED, (Fairness(), nothing))[1:] == [
        "not measured by fairness: group_gap, equalized_odds: no groups: add a column"
    ]


def test_checks_see_the_claim_of_the_dossier_and_the_logged_rounds() -> None:
    manifest = load(
        f"{{table: {{uri: t, sha256: {'a' * 64}, format: parquet}}, columns: {{image: x}}}}", DataManifest, "data"
    )
    claim = Claim(epsilon=3.0, delta=1e-5)
    candidate = Candidate(
        uri="models:/x/1",
        name="x",
        version="1",
        folder=Path(),
        digest="a" * 64,
        dossier=Dossier(recipe=RECIPE, data=manifest, claim=claim),
        rounds_digest="b" * 64,
    )
    policy = load("{name: p, version: 1, release_context: api, checks: [{check: utility}]}", Policy, "policy")
    judged = subject_of(candidate, BARE, policy)
    assert (judged.claim, judged.rounds) == (claim, "b" * 64)


def clients_of_a_column(*, members: int) -> AuditData:
    """Clients with one member each, and three more clients with holdout rows only."""
    rows = members + 3
    return AuditData(
        ids=np.array([f"r{row}" for row in range(rows)]),
        label=np.arange(rows) % 2,
        split=np.where(np.arange(rows) < members, Split.MEMBER, Split.HOLDOUT).astype(np.int8),
        digest="d" * 64,
        client=np.array([f"c{row}" for row in range(rows)]),
        embedding=np.zeros((rows, 1), dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("rule", "clients", "said"),
    [
        ({"name": "krum", "tolerates": 2}, 6, "at least 7 updates a round, found 6"),
        ({"name": "krum", "tolerates": 2}, 7, None),
        ({"name": "trimmed_mean", "tolerates": 2}, 4, "at least 5 updates"),
        ({"name": "trimmed_mean", "tolerates": 2}, 5, None),
        ({"name": "fltrust"}, 5, "rows of the server's own"),
        ({"name": "mean"}, None, "has none"),
    ],
)
def test_a_federation_that_cannot_have_been_trained_on_its_table_is_refused_before_anything_is_computed(
    rule: dict[str, object], clients: int | None, said: str | None
) -> None:
    data = clients_of_a_column(members=clients) if clients else BARE
    fields = {"backbone": {"name": "identity"}, "classes": 2, "optimizer": {"name": "sgd", "lr": 0.1}}
    how = parse(fields | {"epochs": 1, "batch_size": 1, "federation": {"rounds": 2, "aggregator": rule}}, Recipe, "r")
    table = {"uri": "t", "sha256": "d" * 64, "format": "parquet"}
    manifest = parse({"table": table, "columns": {"embedding": "x"}}, DataManifest, "data")
    candidate = Candidate("models:/m/1", "m", "1", Path(), "a" * 64, Dossier(recipe=how, data=manifest))
    policy = load("{name: p, version: 1, release_context: api, checks: [{check: membership}]}", Policy, "policy")
    if said is None:
        assert plan(policy, candidate, data)
        return
    with pytest.raises(DatasetError, match=said) as refused:
        plan(policy, candidate, data)
    assert refused.value.exit_code == 5
    by_a_program = Dossier(recipe=how.model_copy(update={"adaptation": "command"}), data=manifest)
    trainer = policy.model_copy(update={"trainer": Trainer(command=("python", "train.py"))})
    assert plan(trainer, dataclasses.replace(candidate, dossier=by_a_program), data)


def left_open(recipe: Recipe, *checks: str) -> set[str]:
    """Untested topics in the report on a short policy, apart from those that the gate never tests."""
    asked = [{"check": one} for one in checks]
    policy = parse({"name": "p", "version": 1, "release_context": "api", "checks": asked}, Policy, "policy")
    table = {"uri": "t", "sha256": "d" * 64, "format": "parquet"}
    manifest = parse({"table": table, "columns": {"image": "x"}}, DataManifest, "data")
    candidate = Candidate("models:/m/1", "m", "1", Path(), "a" * 64, Dossier(recipe=recipe, data=manifest))
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rules = PolicyInForce(policy, "c" * 64, "p", now.isoformat())
    report = audit(rules, candidate, NAMED, lambda job: {"logits": np.eye(2)}, now)
    return set(report.not_tested) - set(NOT_TESTED)


def test_untested_topics_of_federations_are_listed_if_there_was_one_or_the_policy_expects_one() -> None:
    trained = FEDERATED.model_copy(update={"optimizer": Sgd(name="sgd", lr=0.1)})
    plain, federated = left_open(RECIPE, "utility"), left_open(trained, "utility")
    of_federations = {
        "privacy of a federation's rounds",
        "the federation under hostile clients",
        "the federation with absent, late and very different clients",
        "reconstruction from clients' updates",
    }
    assert federated - plain == of_federations
    assert plain == {"backdoors", "evasion", "accuracy on corrupted images", "groups that the model serves worse"}
    asked = left_open(RECIPE, "robustness")
    assert asked - plain == of_federations - {"the federation under hostile clients"}
