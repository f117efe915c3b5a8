"""From stored results to a report, and how jobs are shared out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from privacy_gate.audit import REFERENCE_BLOCK, Shard, evidence_tier, subject_of
from privacy_gate.candidate import Candidate, Claim, Dossier, Recipe
from privacy_gate.checks import AnyCheck
from privacy_gate.checks.check import Subject
from privacy_gate.checks.fairness import Fairness
from privacy_gate.checks.trajectory import TrajectoryMia
from privacy_gate.checks.utility import Utility
from privacy_gate.dataset import AuditData, DataManifest, Split
from privacy_gate.documents import load
from privacy_gate.errors import ConfigurationError
from privacy_gate.federation import Federation
from privacy_gate.job import Embed, Job, embed_jobs, train_reference
from privacy_gate.policy import Policy

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


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0)])
def test_a_shard_outside_its_count_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigurationError, match="1 <= i <= n"):
        Shard(index, count)


def test_embed_jobs_cover_every_row_once() -> None:
    jobs = embed_jobs(RECIPE.backbone, RECIPE.input, "d" * 64, 1000)
    assert np.concatenate([np.arange(job.first, job.last) for job in jobs]).tolist() == list(range(1000))


def test_the_report_says_which_evidence_federated_checks_had_and_what_comes_next() -> None:
    split = np.array([Split.MEMBER, Split.HOLDOUT], dtype=np.int8)
    bare = AuditData(np.array(["a", "b"]), np.array([0, 1]), split, "d" * 64)
    named = dataclasses.replace(bare, client=np.array(["x", "y"]))
    checks: list[AnyCheck] = [Fairness()]
    federated = RECIPE.model_copy(update={"federation": Federation(rounds=2)})

    def told(recipe: Recipe, data: AuditData, checks: list[AnyCheck], rounds: str | None = None) -> list[str]:
        return evidence_tier(Subject(recipe, "a" * 64, data, {}, rounds=rounds), checks)

    tiers = [told(*each, checks)[0] for each in ((RECIPE, bare), (RECIPE, named), (federated, named))]
    tiers.append(told(federated, named, [TrajectoryMia()], "b" * 64)[0])
    assert [tier[:16] for tier in tiers] == [f"evidence tier E{tier}" for tier in range(4)]
    assert "add the check trajectory" in tiers[2]
    assert "log_round" in told(federated, named, [TrajectoryMia()])[0]
    assert told(RECIPE, bare, [Utility()]) == []


def test_checks_are_told_what_the_dossier_claims_and_which_rounds_were_logged() -> None:
    split = np.array([Split.MEMBER, Split.HOLDOUT], dtype=np.int8)
    data = AuditData(np.array(["a", "b"]), np.array([0, 1]), split, "d" * 64)
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
    judged = subject_of(candidate, data, policy)
    assert (judged.claim, judged.rounds) == (claim, "b" * 64)
