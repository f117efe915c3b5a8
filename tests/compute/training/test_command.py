"""References trained by the policy's program: same evidence, isolated, with a time limit, never named by a dossier."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate.attacks.evidence import logit_scaled
from privacy_gate.auditing.audit import plan
from privacy_gate.auditing.policy import Policy
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import load
from privacy_gate.dossier.candidate import Candidate, Dossier
from privacy_gate.dossier.dataset import AuditData, read_data
from privacy_gate.dossier.recipe import CommandRecipe, Recipe, Trainer
from privacy_gate.errors import ConfigurationError, UnavailableError
from privacy_gate.jobs.digests import digest
from privacy_gate.jobs.kinds import Score, TrainReference, train_reference
from privacy_gate.store import Store

SCRIPT = Path(__file__).parents[2] / "data" / "trainer.py"
MACHINE = Machine(threads=1)
POLICY = """
name: own trainer
version: 1
release_context: api
checks: [{check: membership, references: 8, attacks: [lira]}]
"""


def by_command(scene: Any, *more: str, timeout: float = 60.0) -> CommandRecipe:
    fields = {name: getattr(scene.recipe, name) for name in Recipe.model_fields} | {"adaptation": "command"}
    trainer = Trainer(command=(sys.executable, str(SCRIPT), *more), timeout_s=timeout)
    return CommandRecipe(**fields, trainer=trainer, table=scene.manifest.table.uri)


@pytest.fixture
def data(scene: Any) -> AuditData:
    return read_data(scene.manifest, scene.recipe.classes)


def test_its_references_are_kept_like_any_other_and_learn_their_rows(
    scene: Any, data: AuditData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    recipe, store = by_command(scene), Store(str(tmp_path / "store"))
    jobs = [train_reference(recipe, data.digest, index) for index in range(2)]
    run(jobs, Inputs(data, tmp_path), MACHINE, store)
    kept = [store.get(job) for job in jobs]
    for arrays in kept:
        phi, included = arrays["confidence"], arrays["included"]
        assert included.sum() == scene.members
        assert phi[included].mean() > phi[~included].mean() + 1
        assert b"secret unseen" in arrays["log"].tobytes()
    np.testing.assert_allclose(kept[0]["confidence"], logit_scaled(kept[0]["logits"], data.label), rtol=1e-5, atol=1e-5)
    assert not np.array_equal(kept[0]["confidence"], kept[1]["confidence"])


def test_the_candidate_is_scored_by_it_too(scene: Any, data: AuditData, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weight = np.random.default_rng(0).normal(size=(scene.x.shape[1], scene.recipe.classes))
    np.save(tmp_path / "model" / "weight.npy", weight)
    job, store = Score("a" * 64, by_command(scene), data.digest), Store(str(tmp_path / "store"))
    run([job], Inputs(data, tmp_path / "model"), MACHINE, store)
    np.testing.assert_allclose(store.get(job)["logits"], scene.x @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "timeout", "said"),
    [
        ("fail", 60.0, "failed on reference 0: its exit code was 1; it printed: .*out of luck"),
        ("sleep", 2.0, "it ran longer than trainer.timeout_s, 2.0 s; it printed: "),
        ("silent", 60.0, "it wrote no .npz file with logits"),
        ("empty", 60.0, "it wrote no .npz file with logits .BadZipFile"),
        ("plain", 60.0, "it wrote no .npz file with logits .BadZipFile"),
        ("corrupt", 60.0, "it wrote no .npz file with logits .error"),
        ("nan", 60.0, "expected finite floats"),
    ],
)
def test_a_failing_program_is_reported_with_its_last_output_and_stores_nothing(
    scene: Any, data: AuditData, tmp_path: Path, how: str, timeout: float, said: str
) -> None:
    recipe = by_command(scene, "--misbehave", how, timeout=timeout)
    job, store = train_reference(recipe, data.digest, 0), Store(str(tmp_path / "store"))
    with pytest.raises(UnavailableError, match=said):
        run([job], Inputs(data, tmp_path), MACHINE, store)
    assert not store.has(job)


def test_a_long_log_keeps_its_beginning_and_end(scene: Any, data: AuditData, tmp_path: Path) -> None:
    job, store = train_reference(by_command(scene, "--misbehave", "chatty"), data.digest, 0), Store(str(tmp_path / "s"))
    run([job], Inputs(data, tmp_path), MACHINE, store)
    log = store.get(job)["log"].tobytes()
    assert len(log) < (1 << 20) + 100
    assert b"first words" in log[:1000]
    assert b" bytes left out ..." in log
    assert log.endswith(b"last words\n")


def test_a_process_that_a_program_leaves_running_does_not_delay_the_gate(
    scene: Any, data: AuditData, tmp_path: Path
) -> None:
    began = time.monotonic()
    recipe = by_command(scene, "--misbehave", "escape")
    run([train_reference(recipe, data.digest, 0)], Inputs(data, tmp_path), MACHINE, Store(str(tmp_path / "s")))
    assert time.monotonic() - began < 30


CANCELLED = """
import pickle, sys
from pathlib import Path
from privacy_gate.cli import app, main
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.dossier.dataset import read_data
from privacy_gate.store import Store

@app.command("train")
def train() -> None:
    manifest, classes, job = pickle.loads(Path("job").read_bytes())
    run([job], Inputs(read_data(manifest, classes), Path()), Machine(threads=1), Store("store"))

sys.argv = ["privacy-gate", "train"]
main()
"""


def test_a_gate_that_is_cancelled_leaves_no_program_and_no_folder_behind(scene: Any, tmp_path: Path) -> None:
    recipe, temporary = by_command(scene, "--misbehave", "linger"), tmp_path / "temporary"
    job = train_reference(recipe, scene.manifest.table.sha256, 0)
    (tmp_path / "job").write_bytes(pickle.dumps((scene.manifest, scene.recipe.classes, job)))
    temporary.mkdir()
    gate = subprocess.Popen(
        [sys.executable, "-c", CANCELLED], cwd=tmp_path, env={**os.environ, "TMPDIR": str(temporary)}
    )
    told = temporary / "pid"
    while not (told.exists() and told.read_text().endswith("\n")):
        assert gate.poll() is None
        time.sleep(0.05)
    program = int(told.read_text())
    told.unlink()
    gate.terminate()
    assert gate.wait(30) == 130
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(program, 0)


def test_a_missing_program_is_an_error_of_the_policy(scene: Any, data: AuditData, tmp_path: Path) -> None:
    recipe = by_command(scene).model_copy(update={"trainer": Trainer(command=("/no/such/program",))})
    with pytest.raises(ConfigurationError, match="/no/such/program"):
        run([train_reference(recipe, data.digest, 0)], Inputs(data, tmp_path), MACHINE, Store(str(tmp_path / "s")))


def test_a_dossier_cannot_name_a_program() -> None:
    text = (
        "{backbone: {name: identity}, classes: 2, adaptation: command, optimizer: {name: sgd, lr: 1}, epochs: 1, "
        "batch_size: 1, trainer: {command: [rm]}}"
    )
    with pytest.raises(ConfigurationError, match="trainer"):
        load(text, Recipe, "recipe.yaml")


def test_without_a_trainer_in_the_policy_the_plan_says_what_to_write(
    scene: Any, data: AuditData, tmp_path: Path
) -> None:
    recipe = scene.recipe.model_copy(update={"adaptation": "command"})
    candidate = Candidate("models:/m/1", "m", "1", tmp_path, "a" * 64, Dossier(recipe=recipe, data=scene.manifest))
    with pytest.raises(ConfigurationError, match="name the program that trains references in the policy"):
        plan(load(POLICY, Policy, "policy.yaml"), candidate, data)
    text = f"{POLICY}trainer: {{command: [{shutil.which('true')}]}}"
    jobs = plan(load(text, Policy, "policy.yaml"), candidate, data)
    assert sum(isinstance(job, TrainReference) for job in jobs) == 8


def test_digests_depend_on_program_and_version_but_not_on_table_location_or_timeout(
    scene: Any,
) -> None:
    plain = by_command(scene)
    other_place = plain.model_copy(update={"table": "s3://elsewhere/table.parquet"})
    longer = by_command(scene, timeout=99.0)
    newer = plain.model_copy(update={"trainer": plain.trainer.model_copy(update={"version": 2})})
    names = [digest(train_reference(recipe, "d" * 64, 0)) for recipe in (plain, other_place, longer, newer)]
    assert names[0] == names[1] == names[2] != names[3]
