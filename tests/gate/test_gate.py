"""The whole pass on planted truths: what leaks is blocked, what does not is not, what changed is noticed."""

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy_gate.auditing.audit import Shard
from privacy_gate.compute.machine.device import Machine
from privacy_gate.errors import ConfigurationError, ConflictError, StoreError, UndecidedError
from privacy_gate.gate import steps as gate
from privacy_gate.gate.case import Request, open_case
from privacy_gate.gate.output import write_report
from privacy_gate.gate.preparation import prepare
from privacy_gate.progress import silent
from privacy_gate.registry import producer
from privacy_gate.registry import pull as registry
from privacy_gate.store.place import Place
from privacy_gate.store.shelf import entries, groups
from privacy_gate.verdict.judgement import Status, Verdict
from privacy_gate.verdict.report import Report
from tests.policies import MEMBERSHIP

NOW = datetime.datetime(2030, 1, 1, 12, 0, tzinfo=datetime.UTC)
MACHINE = Machine(threads=1)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(MEMBERSHIP)
    return path


def check(uri: str, policy: Path, tracking: str, folder: Path) -> Report:
    report, *_ = gate.check(
        Request(uri, policy, str(folder / "store"), tracking),
        output=folder / "report",
        machine=MACHINE,
        now=NOW,
        progress=silent,
    )
    return report


def decide(report: Report, tracking: str, folder: Path, **options: Any) -> list[str]:
    settings = {"expect_current": None, "dry_run": False, **options}
    return gate.decide(report, folder / "report", tracking_uri=tracking, **settings)


def register(scene: Any, name: str, tracking: str, rows: np.ndarray | None = None) -> str:  # type: ignore[type-arg]
    model = scene.train(scene.member_rows if rows is None else rows)
    return producer.register(
        model,
        name,
        scene.recipe,
        scene.manifest,
        {"holdout_accuracy": scene.accuracy(model, scene.holdout_rows)},
        tracking,
    )


def aliases(name: str, tracking: str) -> dict[str, str]:
    found = registry.client_of(tracking).get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def test_a_model_that_memorised_is_blocked_far_from_the_limit_and_moves_no_alias(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri = register(scene, "memoriser", tracking)
    report = check(uri, policy, tracking, tmp_path)
    assert report.verdict is Verdict.BLOCKED
    assert report.exit_code == 3
    (lira,) = [finding for finding in report.findings if finding.measurement.subject == "lira"]
    assert lira.status is Status.VIOLATED
    assert lira.measurement.low is not None
    assert lira.measurement.low > 0.15
    assert report.checks[0].result.remedies
    decide(report, tracking, tmp_path)
    assert aliases("memoriser", tracking) == {}
    entry = registry.client_of(tracking).get_model_version("memoriser", "1")
    assert entry.tags["privacy_gate.verdict"] == "blocked"
    metrics = registry.client_of(tracking).get_run(entry.run_id).data.metrics
    assert metrics["privacy_gate/membership.lira.tpr_at_0.01_fpr"] == pytest.approx(lira.measurement.value)


@pytest.fixture
def careful(scenes: Callable[..., Any], tmp_path: Path) -> Any:
    return scenes(tmp_path, members=1000, features=16, epochs=1, lr=0.01)


def test_a_model_that_learnt_little_of_each_example_is_approved_and_promoted(
    careful: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri = register(careful, "careful", tracking)
    report = check(uri, policy, tracking, tmp_path)
    assert report.verdict is Verdict.APPROVED, report.reasons
    dry = decide(report, tracking, tmp_path, dry_run=True)
    assert aliases("careful", tracking) == {}
    assert all(line.startswith("would write:") for line in dry)
    assert "alias champion: none -> 1" in decide(report, tracking, tmp_path)[-1]
    assert aliases("careful", tracking) == {"champion": "1"}
    decide(report, tracking, tmp_path)  # again: nothing to change, no error
    judged = check("models:/careful@champion", policy, tracking, tmp_path)
    assert judged.candidate.version == "1"
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["candidate"]["alias"] == "champion"


def test_who_declares_no_federation_is_not_approved_by_limits_on_one_but_by_the_policy_s_own_leave(
    careful: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri, asked = register(careful, "undeclared", tracking), tmp_path / "asked.yaml"
    limit = "  - {check: robustness, required: %s, limits: {byzantine_drop: {max: 0.15}}}\npromotion:"
    asked.write_text(MEMBERSHIP.replace("promotion:", limit % "true"))
    report = check(uri, asked, tracking, tmp_path)
    assert (report.verdict, report.exit_code) == (Verdict.UNDECIDED, 4)
    assert "byzantine_drop not measured: the recipe declares no federation" in report.reasons[0]
    assert any(note.startswith("not measured by robustness: byzantine_drop, ") for note in report.notes)
    asked.write_text(MEMBERSHIP.replace("promotion:", limit % "false"))
    spared = check(uri, asked, tracking, tmp_path)
    assert spared.verdict is Verdict.APPROVED
    (left_out,) = [one.result for one in spared.checks if one.check == "robustness"]
    assert "byzantine_drop" in left_out.left_out
    assert "left out by the policy's leave" in left_out.notes[0]


def test_promotion_refuses_changed_bytes_a_moved_alias_and_a_blocked_report(
    careful: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri = register(careful, "moving", tracking)
    report = check(uri, policy, tracking, tmp_path)
    with pytest.raises(ConflictError, match="alias champion is at none, expected 4"):
        decide(report, tracking, tmp_path, expect_current="4")
    client = registry.client_of(tracking)
    client.set_registered_model_alias("moving", "candidate", "1")
    judged = check("models:/moving@candidate", policy, tracking, tmp_path)
    register(careful, "moving", tracking)
    client.set_registered_model_alias("moving", "candidate", "2")
    with pytest.raises(ConflictError, match="was judged at version 1 and is now at 2"):
        decide(judged, tracking, tmp_path)
    (tmp_path / "note.txt").write_text("one more byte")
    model_id = registry.model_id_of(client.get_model_version("moving", "1"))
    assert model_id is not None
    client.log_model_artifact(model_id, str(tmp_path / "note.txt"))
    with pytest.raises(ConflictError, match="its bytes changed"):
        decide(report, tracking, tmp_path)
    assert aliases("moving", tracking) == {"candidate": "2"}


def test_a_dossier_that_names_the_wrong_members_is_not_approved_as_private(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    others = np.arange(scene.members, 2 * scene.members)  # trained on holdout rows instead
    report = check(register(scene, "liar", tracking, others), policy, tracking, tmp_path)
    assert report.verdict is not Verdict.APPROVED


def test_steps_alone_and_in_shards_give_the_report_of_the_whole_pass(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri = register(scene, "sharded", tracking)
    whole = check(uri, policy, tracking, tmp_path)
    store = str(tmp_path / "parts")

    def opened() -> Any:
        return open_case(Request(uri, policy, store, tracking), NOW)

    for index, found in ((2, r"34 of 34 .*32 TrainReference"), (1, r"1[78] of 34 results are missing .*16 TrainRef")):
        with opened() as case, pytest.raises(UndecidedError, match=found + ".*run `prepare` first, every shard") as one:
            case.audit(NOW, silent)
        assert one.value.exit_code == 4
        with opened() as case:
            prepare(case, MACHINE, Shard(index, 2), silent)
    with opened() as case:
        assert prepare(case, MACHINE, Shard(), silent)[0] == 0
    with opened() as case:
        parts = case.audit(NOW, silent)
    assert parts == whole


def test_a_retrained_candidate_and_another_policy_train_no_reference_again(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    check(register(scene, "retrained", tracking), policy, tracking, tmp_path)
    again = register(scene, "retrained", tracking, scene.member_rows[::-1].copy())
    more = tmp_path / "more.yaml"
    more.write_text(MEMBERSHIP.replace("references: 32", "references: 36").replace("[lira, loss]", "[rmia]"))
    for path, computed in ((policy, 1), (more, 4)):
        with open_case(Request(again, path, str(tmp_path / "store"), tracking), NOW) as case:
            assert prepare(case, MACHINE, Shard(), silent)[0] == computed


def test_an_interrupted_run_goes_on_where_it_was_and_computes_nothing_again(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri, store = register(scene, "interrupted", tracking), tmp_path / "store"

    def interrupt(task: str, done: int, total: int) -> None:
        if task == "train references" and done > 12:
            raise KeyboardInterrupt

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}

    with open_case(Request(uri, policy, str(store), tracking), NOW) as case:
        with pytest.raises(KeyboardInterrupt):
            prepare(case, Machine(threads=1, block=4), Shard(), interrupt)
        before = files()
        computed, stored, _ = prepare(case, MACHINE, Shard(), silent)
    assert (computed, stored) == (34 - len(before), len(before))
    assert len(before) > 12
    assert files().items() >= before.items()


def test_what_made_a_result_is_on_record(scene: Any, policy: Path, tracking: str, tmp_path: Path) -> None:
    check(register(scene, "made", tracking), policy, tracking, tmp_path)
    listed = groups(list(entries(Place(str(tmp_path / "store")))))
    assert {group.torch for group in listed} == {torch.__version__}
    assert all(group.device.startswith("cpu ") for group in listed)
    assert sum(group.count for group in listed) == 34


def test_a_damaged_result_is_named_and_a_deleted_one_computed_again(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri = register(scene, "damaged", tracking)
    before = check(uri, policy, tracking, tmp_path)
    path = sorted((tmp_path / "store").rglob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="delete it and run `prepare` again"):
        check(uri, policy, tracking, tmp_path)
    path.unlink()
    after = check(uri, policy, tracking, tmp_path)
    assert after.verdict is before.verdict
    shutil.rmtree(tmp_path / "store")
    assert check(uri, policy, tracking, tmp_path).findings == before.findings


def test_too_few_holdout_rows_leave_the_verdict_undecided(
    scenes: Callable[..., Any], policy: Path, tracking: str, tmp_path: Path
) -> None:
    few = scenes(tmp_path, holdout=300)
    report = check(register(few, "few", tracking), policy, tracking, tmp_path)
    assert report.verdict is Verdict.UNDECIDED
    assert report.exit_code == 4
    assert any("needs n >= 1,000 holdout rows, found 300" in reason for reason in report.reasons)


def test_the_policy_is_recorded_before_anything_is_measured(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    uri = register(scene, "recorded", tracking)
    with open_case(Request(uri, policy, str(tmp_path / "store"), tracking), NOW) as case:
        prepare(case, MACHINE, Shard(), silent)
    later = NOW + datetime.timedelta(days=1)
    with open_case(Request(uri, policy, str(tmp_path / "store"), tracking), later) as case:
        report = case.audit(later, silent)
    assert (report.policy.recorded, report.created) == (NOW.isoformat(), later.isoformat())


def test_an_output_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="name a folder that can be written"):
        write_report(None, tmp_path / "file" / "report")  # type: ignore[arg-type]
