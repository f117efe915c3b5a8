"""Limits relative to the champion, end to end: who is worse is blocked, who is equal is not, what moved is noticed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from privacy_gate.auditing.audit import Shard
from privacy_gate.compute.cluster import Cluster, connected
from privacy_gate.errors import ConfigurationError, ConflictError
from privacy_gate.gate.case import Request, open_case
from privacy_gate.gate.preparation import prepare
from privacy_gate.jobs.kinds import Score
from privacy_gate.progress import silent
from privacy_gate.registry import producer
from privacy_gate.registry import pull as registry
from privacy_gate.reports import FORMATS
from privacy_gate.verdict.judgement import Finding, Status, Verdict
from privacy_gate.verdict.report import Report, parse_report
from tests.gate.test_gate import MACHINE, NOW, aliases, check, decide

LIMIT = "{min: 0.25, champion_drop: 0.05}"
POLICY = """\
name: test
version: 1
release_context: api
checks:
  - check: utility
    limits:
      holdout_accuracy: %s
promotion: {alias: champion}
"""


@pytest.fixture
def scene(scenes: Callable[..., Any], tmp_path: Path) -> Any:
    return scenes(tmp_path, members=1000, features=16, epochs=2, lr=0.01)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return written(tmp_path, LIMIT)


def written(folder: Path, limit: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(POLICY % limit)
    return path


def register(scene: Any, name: str, tracking: str, seen: int = 1000, **changes: Any) -> str:
    """A version trained on so many of the members; changed: parts of its recipe or manifest."""
    recipe = scene.recipe.model_copy(update=changes.pop("recipe", {}))
    manifest = scene.manifest.model_copy(update=changes.pop("manifest", {}))
    model = changes.pop("model", None) or scene.train(scene.member_rows[:seen])
    return producer.register(model, name, recipe, manifest, {}, tracking)


def enthrone(name: str, version: int, tracking: str) -> None:
    registry.client_of(tracking).set_registered_model_alias(name, "champion", str(version))


def compared(report: Report) -> Finding:
    (found,) = [one for one in report.findings if one.measurement.metric == "holdout_accuracy_vs_champion"]
    return found


def test_a_worse_candidate_is_blocked_by_the_champion_alone_and_an_equal_one_approved(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = "worse"
    register(scene, name, tracking)
    enthrone(name, 1, tracking)
    worse = check(register(scene, name, tracking, seen=12), policy, tracking, tmp_path)
    assert worse.verdict is Verdict.BLOCKED
    assert [one.status for one in worse.findings] == [Status.MET, Status.VIOLATED]
    found = compared(worse).measurement
    own, champion = (scene.accuracy(scene.train(scene.member_rows[:seen]), scene.holdout_rows) for seen in (12, 1000))
    assert found.value == pytest.approx(own - champion)
    assert found.champion == pytest.approx(champion)
    assert worse.champion is not None
    assert (worse.champion.alias, worse.champion.version, worse.champion.reason) == ("champion", "1", None)
    equal = check(register(scene, name, tracking, seen=999), policy, tracking, tmp_path)
    assert equal.verdict is Verdict.APPROVED, equal.reasons
    decide(equal, tracking, tmp_path)
    assert aliases(name, tracking) == {"champion": "3"}
    decide(equal, tracking, tmp_path)  # again: the alias is where it should be


def test_every_view_says_what_the_champion_reaches_and_what_the_candidate_may_lose(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = "views"
    register(scene, name, tracking)
    enthrone(name, 1, tracking)
    report = check(register(scene, name, tracking, seen=12), policy, tracking, tmp_path)
    reached = f"{100 * (compared(report).measurement.champion or 0):.1f}".removesuffix(".0")
    limit, pinned = f"≥ champion's {reached} % − 5 points", str(report.champion and report.champion.digest)
    for form in ("text", "markdown", "html"):
        view = FORMATS[form].render(report).replace("\u00a0", " ").replace("&#39;", "'")
        assert limit in view, form
        named = "version 1, at the alias champion when the candidate was pulled" in view
        assert (form == "text") != (named and pinned in view), form
    assert parse_report(FORMATS["json"].render(report), "report.json") == report
    assert ">= -0.05 from the champion's" in report.reasons[0]


def test_a_report_that_does_not_name_the_champion_it_compares_with_is_refused(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = "unnamed"
    register(scene, name, tracking)
    enthrone(name, 1, tracking)
    report = check(register(scene, name, tracking, seen=999), policy, tracking, tmp_path)
    for champion, message in (
        (None, "compares with a champion that the report does not identify"),
        (report.champion.model_copy(update={"alias": "other"}), "the policy's alias is champion"),  # type: ignore[union-attr]
    ):
        forged = report.model_copy(update={"champion": champion})
        with pytest.raises(ConfigurationError, match=message):
            parse_report(forged.model_dump_json(), "report.json")


def test_while_there_is_no_champion_the_absolute_limit_holds_alone(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    report = check(register(scene, "first", tracking), policy, tracking, tmp_path)
    assert report.verdict is Verdict.APPROVED, report.reasons
    assert [one.measurement.metric for one in report.findings] == ["holdout_accuracy"]
    assert report.champion is not None
    assert report.champion.version is None
    assert any("is not compared, as the policy allows" in note for one in report.checks for note in one.result.notes)


@pytest.mark.parametrize(("without", "verdict"), [("block", Verdict.UNDECIDED), ("pass", Verdict.APPROVED)])
def test_without_champion_decides_if_there_is_no_absolute_limit(
    without: str, verdict: Verdict, scene: Any, tracking: str, tmp_path: Path
) -> None:
    limits = f"{{champion_drop: 0.05, without_champion: {without}}}\n      member_accuracy: {{min: 0.1}}"
    name = f"alone-{without}"
    report = check(register(scene, name, tracking), written(tmp_path, limits), tracking, tmp_path)
    assert report.verdict is verdict
    assert (without == "block") == any("no version has the alias champion" in line for line in report.reasons)


def test_an_alias_that_moved_since_is_a_conflict_and_moves_no_further(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = "moved"
    register(scene, name, tracking)
    first = check(register(scene, name, tracking, seen=999), policy, tracking, tmp_path)
    enthrone(name, 1, tracking)
    with pytest.raises(
        ConflictError, match=r"was at none when the candidate was compared with it, and is now at 1"
    ) as one:
        decide(first, tracking, tmp_path)
    assert one.value.exit_code == 7
    second = check(f"models:/{name}/2", policy, tracking, tmp_path)
    register(scene, name, tracking, seen=998)
    enthrone(name, 3, tracking)
    with pytest.raises(ConflictError, match=r"was at 1 when .* is now at 3: check the candidate again"):
        decide(second, tracking, tmp_path, dry_run=True)
    assert aliases(name, tracking) == {"champion": "3"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": {"classes": 6}}, "it has 6 classes and the candidate has 5"),
        ({"manifest": {"class_names": tuple("abcde")}}, "class_names in its manifest are different"),
    ],
)
def test_a_champion_of_other_classes_is_not_compared_and_nothing_is_approved(
    changes: Any, reason: str, scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = f"classes-{len(reason)}"
    register(scene, name, tracking, **changes)
    enthrone(name, 1, tracking)
    report = check(register(scene, name, tracking), policy, tracking, tmp_path)
    assert report.verdict is Verdict.UNDECIDED
    assert compared(report).status is Status.NOT_MEASURED
    assert reason in report.reasons[0]


def test_a_champion_whose_classes_stand_in_another_order_is_no_measure(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    """Nothing declares it: but it is right no more often than who names the largest class, and anybody would pass."""
    name, model = "permuted", scene.train(scene.member_rows)
    order = [1, 2, 3, 4, 0]
    model.weight.data, model.bias.data = model.weight.data[order], model.bias.data[order]
    register(scene, name, tracking, model=model)
    enthrone(name, 1, tracking)
    report = check(register(scene, name, tracking), policy, tracking, tmp_path)
    assert report.verdict is Verdict.UNDECIDED
    assert "check that it belongs to this table and has its classes in this order" in report.reasons[0]


def test_a_champion_without_a_sound_dossier_blocks_and_the_candidate_is_not_blamed(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = "undescribed"
    register(scene, name, tracking)
    client = registry.client_of(tracking)
    model_id = registry.model_id_of(client.get_model_version(name, "1"))
    assert model_id is not None
    (tmp_path / "recipe.yaml").write_text("backbone: [\n")
    client.log_model_artifact(model_id, str(tmp_path / "recipe.yaml"))
    (folder := tmp_path / "more" / "privacy_gate").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("backbone: [\n")
    client.log_model_artifacts(model_id, str(tmp_path / "more"))
    enthrone(name, 1, tracking)
    report = check(register(scene, name, tracking), policy, tracking, tmp_path)
    assert report.verdict is Verdict.UNDECIDED
    assert "version 1, the champion, cannot be compared: it cannot be read: " in report.reasons[0]


def test_a_champion_that_fails_where_it_is_computed_with_blocks_and_is_not_tried_again(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    import torch

    name = "broken"
    register(scene, name, tracking, model=torch.nn.Linear(3, 5))  # of other features than the table has
    enthrone(name, 1, tracking)
    report = check(register(scene, name, tracking), policy, tracking, tmp_path)
    assert report.verdict is Verdict.UNDECIDED
    assert "version 1, the champion, cannot be compared" in report.reasons[0]
    assert "the table has 16" in report.reasons[0]
    again = check(f"models:/{name}/2", policy, tracking, tmp_path)
    assert again.findings == report.findings


def test_who_is_the_champion_is_compared_with_itself(scene: Any, policy: Path, tracking: str, tmp_path: Path) -> None:
    uri = register(scene, "itself", tracking)
    enthrone("itself", 1, tracking)
    report = check(uri, policy, tracking, tmp_path)
    assert compared(report).measurement.value == 0
    assert report.verdict is Verdict.APPROVED


def test_steps_and_shards_read_both_models_and_a_champion_judged_before_is_not_computed_again(
    scene: Any, policy: Path, tracking: str, tmp_path: Path
) -> None:
    name = "steps"
    register(scene, name, tracking)
    enthrone(name, 1, tracking)
    uri = register(scene, name, tracking, seen=999)
    whole = check(uri, policy, tracking, tmp_path)

    def prepared(store: str, part: Shard, of: str = uri) -> int:
        with open_case(Request(of, policy, str(tmp_path / store), tracking), NOW) as case:
            return prepare(case, MACHINE, part, silent).computed

    assert [prepared("parts", Shard(index, 2)) for index in (1, 2)] == [1, 1]
    with open_case(Request(uri, policy, str(tmp_path / "parts"), tracking), NOW) as case:
        assert case.audit(NOW, silent) == whole
        asked = [job.artifact for job in case.jobs if isinstance(job, Score)]
        assert asked == [case.candidate.digest, case.champion.artifact]  # type: ignore[union-attr]
    assert prepared("again", Shard(), f"models:/{name}/1") == 1
    assert prepared("again", Shard()) == 1


@pytest.mark.slow
def test_a_cluster_s_workers_read_both_models(scene: Any, policy: Path, tracking: str, tmp_path: Path) -> None:
    if not importlib.util.find_spec("ray"):
        pytest.skip("Ray is not installed")
    name = "cluster"
    register(scene, name, tracking)
    enthrone(name, 1, tracking)
    uri = register(scene, name, tracking, seen=12)
    here = check(uri, policy, tracking, tmp_path)
    with connected(Cluster(), cpus=1):
        with open_case(Request(uri, policy, str(tmp_path / "far"), tracking), NOW) as case:
            assert prepare(case, MACHINE, Shard(), silent, Cluster()).computed == 2
            assert case.audit(NOW, silent) == here
        register(scene, name, tracking, model=torch.nn.Linear(3, 5))
        enthrone(name, 3, tracking)
        with open_case(Request(uri, policy, str(tmp_path / "far"), tracking), NOW) as case:
            prepare(case, MACHINE, Shard(), silent, Cluster())
            assert (
                "it failed when it was run in place of the candidate: the candidate's head reads 3 features"
                in case.audit(NOW, silent).reasons[0]
            )
