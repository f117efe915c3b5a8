"""Every check measures exactly the metrics its limits can name, from the jobs it asks for and no others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from privacy_gate.arrays import Arrays
from privacy_gate.attacks import strongest
from privacy_gate.attacks.release import Release
from privacy_gate.auditing.policy import Policy
from privacy_gate.checks import CHECKS as KINDS
from privacy_gate.checks import AnyCheck
from privacy_gate.checks.base.check import Subject, in_percent
from privacy_gate.checks.disparity import Disparity
from privacy_gate.checks.dp_claim import DpClaim
from privacy_gate.checks.membership import Membership
from privacy_gate.checks.power_law import PowerLaw
from privacy_gate.checks.recipe import RecipeLeak
from privacy_gate.checks.utility import Utility
from privacy_gate.checks.vulnerability import Vulnerability
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.dossier.dataset import read_data
from privacy_gate.errors import UndecidedError
from privacy_gate.jobs.kinds import Embed, Job, Score, TrainControl, train_reference
from privacy_gate.reports.coverage import references
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import CheckResult, Measurement

CHECKS: list[AnyCheck] = [
    Membership(references=32, attacks=("lira", "loss", "attack_p")),
    RecipeLeak(references=64),
    PowerLaw(references=16, divisors=(4, 2, 1), target={"tpr_at_0.1_fpr": 0.2}),
    Vulnerability(references=48),
    Disparity(references=32, permutations=199),
    DpClaim(references=32),
    Utility(),
]


def measured(check: AnyCheck, scene: Any, folder: Path, logged: dict[str, float]) -> tuple[CheckResult, set[Job]]:
    """The check's result, and the jobs whose results it looked at."""
    (folder / "candidate").mkdir()
    torch.save(scene.train(scene.member_rows), folder / "candidate" / "model.pth")
    data = read_data(scene.manifest, scene.recipe.classes)
    subject = Subject(scene.recipe, "a" * 64, data, logged)
    store, looked = Store(str(folder / "store")), set()
    run(check.jobs(subject), Inputs(data, folder / "candidate"), Machine(threads=1), store)

    def results(job: Job) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        looked.add(job)
        return store.get(job)

    return check.measure(subject, results, 0.95), looked - set(check.jobs(subject))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_measures_what_its_limits_can_name_from_its_own_jobs(
    check: AnyCheck, scene: Any, tmp_path: Path
) -> None:
    result, foreign = measured(check, scene, tmp_path, {})
    named = type(check).model_fields["limits"].annotation
    assert {m.metric for m in result.measurements} == set(get_args(get_args(named)[0]))
    assert foreign == set()


def test_the_recipe_s_leak_is_found_by_both_protocols(scene: Any, tmp_path: Path) -> None:
    result, _ = measured(CHECKS[1], scene, tmp_path, {})
    for measurement in result.measurements:
        if measurement.metric.endswith("at_0.01_fpr"):
            assert measurement.low is not None
            assert measurement.low > 0.1


def test_the_leak_falls_as_classes_grow_and_the_law_says_how_many_are_needed(
    scenes: Callable[..., Any], tmp_path: Path
) -> None:
    grown = scenes(tmp_path, members=400, holdout=400, features=64, epochs=20)
    result, _ = measured(CHECKS[2], grown, tmp_path, {})
    slope = next(m for m in result.measurements if m.metric == "slope_at_0.1_fpr")
    assert slope.high is not None
    assert slope.high < 0
    assert "examples per class" in result.remedies[0].action


def test_an_accuracy_that_the_run_did_not_have_fails_the_control(scene: Any, tmp_path: Path) -> None:
    model = scene.train(scene.member_rows)
    honest = {"holdout_accuracy": scene.accuracy(model, scene.holdout_rows), "member_accuracy": 1.0}
    result, _ = measured(Utility(), scene, tmp_path, honest)
    assert all(control.held for control in result.controls)
    (tmp_path / "other").mkdir()
    result, _ = measured(Utility(), scene, tmp_path / "other", {"holdout_accuracy": 0.5})
    assert [control.held for control in result.controls] == [False]
    assert "the dossier does not describe this model" in result.controls[0].detail


def test_the_positive_control_names_attacks_that_it_could_not_try(scene: Any, tmp_path: Path) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    traced = replace(data, trace=np.random.default_rng(0).random((data.rows, 5)))
    (tmp_path / "candidate").mkdir()
    torch.save(scene.train(scene.member_rows), tmp_path / "candidate" / "model.pth")
    check, store = Membership(references=16, attacks=("loss", "loss_trace")), Store(str(tmp_path / "store"))
    subject = Subject(scene.recipe, "a" * 64, traced, {})
    run(check.jobs(subject), Inputs(traced, tmp_path / "candidate"), Machine(threads=1), store)
    (control,) = [one for one in check.measure(subject, store.get, 0.95).controls if one.name == "positive control"]
    assert control.held
    assert control.detail.endswith("; not tried: loss_trace")


def subject_of(
    scene: Any, folder: Path, release: Release, attacks: tuple[str, ...] | None
) -> tuple[Subject, Membership]:
    """A candidate of the scene under a policy of this release and these attacks."""
    candidate = folder / "candidate"
    if not candidate.exists():
        candidate.mkdir()
        torch.save(scene.train(scene.member_rows), candidate / "model.pth")
    check = Membership(references=32, attacks=attacks)
    policy = Policy(name="p", version=1, release=release, checks=(check,))
    data = read_data(scene.manifest, scene.recipe.classes)
    return Subject(scene.recipe, "a" * 64, data, {}, release=release, keeps=policy.keeps(scene.recipe)), check


@pytest.mark.parametrize("release", [Release(), Release(digits=5), Release(outputs="weights")], ids=str)
def test_weights_of_heads_are_attacked_by_default(scene: Any, tmp_path: Path, release: Release) -> None:
    subject, check = subject_of(scene, tmp_path, release, None)
    assert subject.keeps == ("head",)
    store = Store(str(tmp_path / "store"))
    run(check.jobs(subject), Inputs(subject.data, tmp_path / "candidate"), Machine(threads=1), store)
    result = check.measure(subject, store.get, 0.95)
    areas = {m.subject: m.value for m in result.measurements if m.metric == "auc"}
    assert set(areas) == set(strongest(release, "head"))
    assert areas["span_lira"] is not None
    assert areas["span_lira"] > 0.6
    (control,) = [one for one in result.controls if one.name == "positive control"]
    assert control.held
    assert "not tried" not in control.detail
    assert f"the attacker sees {release}" in result.notes[0]
    assert (release.outputs == "weights") != any("recovers the head" in note for note in result.notes)


def test_results_stored_without_heads_serve_policies_that_ask_for_none(scene: Any, tmp_path: Path) -> None:
    """What was computed before heads were kept is found again: nothing is trained anew, and nothing needs a head."""
    plain, check = subject_of(scene, tmp_path, Release(), ("lira", "loss"))
    assert plain.keeps == ()
    store = Store(str(tmp_path / "store"))
    earlier = [
        *(job for job in check.jobs(plain) if isinstance(job, Embed)),
        Score("a" * 64, scene.recipe, plain.data.digest),
        TrainControl(scene.recipe.backbone, scene.recipe.input, plain.data.digest),
        *(train_reference(scene.recipe, plain.data.digest, index) for index in range(32)),
    ]
    run(earlier, Inputs(plain.data, tmp_path / "candidate"), Machine(threads=1), store)
    assert set(check.jobs(plain)) == set(earlier)
    found = check.measure(plain, store.get, 0.95)
    assert all(m.value is not None or "holdout rows" in str(m.reason) for m in found.measurements)
    # A policy with attacks on weights asks for other results, and does not take these for its own.
    asked, wide = subject_of(scene, tmp_path, Release(), None)
    assert not {job for job in wide.jobs(asked) if not isinstance(job, Embed)} & set(earlier)
    with pytest.raises(UndecidedError):
        wide.measure(asked, store.get, 0.95)


def test_results_without_heads_leave_attacks_on_weights_unmeasured_with_the_reason(scene: Any, tmp_path: Path) -> None:
    """A candidate whose policy keeps no heads, judged by attacks on them: not measured, never passed."""
    subject, _ = subject_of(scene, tmp_path, Release(), ("lira",))
    check, store = Membership(references=32, attacks=("span_lira", "lira")), Store(str(tmp_path / "store"))
    run(check.jobs(subject), Inputs(subject.data, tmp_path / "candidate"), Machine(threads=1), store)
    result = check.measure(subject, store.get, 0.95)
    reasons = {m.reason for m in result.measurements if m.subject == "span_lira"}
    assert reasons == {"needs the weights of a head, or the gradient span of a network: none was kept"}


@pytest.mark.parametrize("lost", [("head",), ("head", "correct")], ids="-".join)
def test_stored_results_that_lack_what_was_asked_for_are_not_measured(
    scene: Any, tmp_path: Path, lost: tuple[str, ...]
) -> None:
    subject, check = subject_of(scene, tmp_path, Release(), ("span_lira", "span", "label_lira", "lira"))
    store = Store(str(tmp_path / "store"))
    run(check.jobs(subject), Inputs(subject.data, tmp_path / "candidate"), Machine(threads=1), store)

    def results(job: Job) -> Arrays:
        return {name: array for name, array in store.get(job).items() if name not in lost}

    areas = {m.subject: m for m in check.measure(subject, results, 0.95).measurements if m.metric == "auc"}
    assert "none was kept" in str(areas["span_lira"].reason)
    assert "none was kept" in str(areas["span"].reason)
    assert areas["lira"].value is not None
    assert (areas["label_lira"].value is None) == ("correct" in lost)


def test_with_labels_alone_only_attacks_on_labels_are_tried(scene: Any, tmp_path: Path) -> None:
    subject, check = subject_of(scene, tmp_path, Release(outputs="label"), ("label_lira", "gap", "lira"))
    store = Store(str(tmp_path / "store"))
    run(check.jobs(subject), Inputs(subject.data, tmp_path / "candidate"), Machine(threads=1), store)
    result = check.measure(subject, store.get, 0.95)
    areas = {m.subject: m for m in result.measurements if m.metric == "auc"}
    assert areas["gap"].value is not None
    assert areas["label_lira"].value is not None
    assert "needs a release of at least the largest probabilities" in str(areas["lira"].reason)
    (control,) = [one for one in result.controls if one.name == "positive control"]
    assert control.held


def test_an_attacker_who_does_not_know_the_pool_has_fewer_attacks(scene: Any, tmp_path: Path) -> None:
    subject, _ = subject_of(scene, tmp_path, Release(), ("lira", "loss"))
    check = Membership(references=32, attacks=("lira", "loss"), knowledge="population")
    store = Store(str(tmp_path / "store"))
    run(check.jobs(subject), Inputs(subject.data, tmp_path / "candidate"), Machine(threads=1), store)
    areas = {m.subject: m for m in check.measure(subject, store.get, 0.95).measurements if m.metric == "auc"}
    assert areas["loss"].value is not None
    assert "knowledge: population" in str(areas["lira"].reason)


def test_figures_of_remedies_are_rounded_outward_as_those_of_tables() -> None:
    loss = Measurement(metric="robustness_tax", value=-0.0004, low=-0.0341, high=0.0341, confidence=0.95)
    assert in_percent(loss) == "0.0 % [−3.5, 3.5]"
    exact = Measurement(metric="robustness_tax", value=0.145, low=0.145, high=0.145, confidence=0.95)
    assert in_percent(exact) == "14.5 % [14.5, 14.5]"


def test_checks_declare_what_reports_need_to_know_about_them() -> None:
    classes = {attacks.name for attacks in references().attacks}
    for kind in KINDS.values():
        assert kind.title
        assert kind.attack_class is None or kind.attack_class in classes
        assert kind.left_open or not kind.federated
    assert {kind.attack_class for kind in KINDS.values()} | {"reconstruction and inversion"} >= classes
