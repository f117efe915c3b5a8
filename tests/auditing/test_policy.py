"""Policies: those in policies/ load, faults are reported with their place, waivers excuse only the limits they name."""

import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate.attacks.release import Release
from privacy_gate.auditing.policy import Policy, load_policy
from privacy_gate.checks.base.check import Subject, WhereDeclared
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.gate.lint import lint_policy
from privacy_gate.jobs.kinds import Job, Score
from privacy_gate.verdict.judgement import CheckResult, Measurement, Severity, Status, Verdict, verdict
from tests.jobs.samples import recipe

POLICIES = Path(__file__).parents[2] / "policies"
TODAY = datetime.date(2030, 6, 1)

POLICY = """\
name: house
version: 1
release_context: api
checks:
  - check: membership
    attacks: [loss]
    limits:
      tpr_at_0.01_fpr: {max: 0.05}
waivers:
  - {model: digits, check: membership, metric: tpr_at_0.01_fpr, owner: dpo, reason: pilot, expires: "2030-06-01"}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_policy(write(folder, text))
    return str(caught.value).replace(str(folder) + "/", "")


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_policy_loads_and_justifies_its_numbers(path: Path) -> None:
    policy, sha256 = load_policy(path)
    assert policy.name == path.stem
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if "max:" in line or "min:" in line:
            above = next(previous for previous in reversed(lines[:number]) if not previous.lstrip().startswith("- "))
            assert "#" in line or "#" in above, f"{path.name}:{number + 1} has a limit without a reason"


def test_the_three_ready_policies_are_there() -> None:
    assert {path.stem for path in POLICIES.glob("*.yaml")} >= {"baseline", "strict", "report-only"}


def test_the_robustness_policy_needs_no_training_and_compares_with_the_champion() -> None:
    policy, _ = load_policy(POLICIES / "robustness.yaml")
    assert [check.name for check in policy.checks] == ["backdoor", "evasion", "corruption", "fairness", "utility"]
    assert policy.compares
    bounds = {metric: str(limit) for check in policy.checks for metric, limit in check.bounds.items()}
    assert bounds == {
        "backdoor_lift": "<= 0.05", "trigger_fragility": "<= 0.5",
        "inverted_backdoor": "<= 0.9", "trigger_anomaly": "<= 2",
        "robust_accuracy_vs_champion": ">= -0.05", "universal_transfer_vs_champion": "<= 0.05",
        "corruption_ratio": ">= 0.45", "corruption_ratio_vs_champion": ">= -0.05",
        "group_gap": "<= 0.1", "equalized_odds": "<= 0.1", "client_std": "<= 0.1", "worst_decile_gap": "<= 0.2",
        "holdout_accuracy": ">= 0.8", "holdout_accuracy_vs_champion": ">= -0.05",
    }  # fmt: skip
    said = undeclared(policy)  # a table without clients and groups passes, with a note in the report
    assert {name: set(result.left_out) >= set(check.bounds) for name, result in said.items() for check in policy.checks
            if check.name == name} == {"fairness": True}  # fmt: skip
    lines = lint_policy(POLICIES / "robustness.yaml", 1000)
    assert "  evasion: robust_accuracy: without a champion it passes" in lines
    assert not any("no model can" in line or "relax it" in line for line in lines)


def test_report_only_never_blocks_and_promotes_nothing() -> None:
    policy, _ = load_policy(POLICIES / "report-only.yaml")
    assert policy.promotion is None
    assert {limit.severity for check in policy.checks for limit in check.bounds.values()} == {"warn"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("tpr_at_0.01_fpr: {max", "tpr_at_0.01_fp: {max", "policy.yaml:8:7: checks.0.limits.tpr_at_0.01_fp: unknown "
         "key; did you mean 'tpr_at_0.01_fpr'?"),
        ("{max: 0.05}", "{max: '0.05'}", "policy.yaml:8:30: checks.0.limits.tpr_at_0.01_fpr.max: Input should be"),
        ("{max: 0.05}", "{max: .nan}", "policy.yaml:8:30: '.nan' is not a finite number"),
        ("{max: 0.05}", "{max: 0.05, min: 0.01}", "policy.yaml:8:24: checks.0.limits.tpr_at_0.01_fpr: a limit needs"),
        ("{max: 0.05}", "{maxx: 0.05}", "policy.yaml:8:25: checks.0.limits.tpr_at_0.01_fpr.maxx: unknown key; "
         "did you mean 'max'?"),
        ("attacks: [loss]", "attacks: [lyra]", "policy.yaml:6:14: checks.0.attacks: no attack is called 'lyra'; "
         "did you mean 'lira'?"),
        ("attacks: [loss]", "attacks: []", "policy.yaml:6:14: checks.0.attacks: Tuple should have at least 1 item"),
        ("attacks: [loss]", "attack: [loss]", "policy.yaml:6:5: checks.0.attack: unknown key; did you mean 'attacks'?"),
        ("check: membership\n", "check: memberships\n", "policy.yaml:5:12: checks.0.check: 'memberships' is unknown; "
         "did you mean 'membership'?"),
        ("check: membership\n", "attack: loss\n", "policy.yaml:5:5: checks.0: 'check' is missing here"),
        ("{max: 0.05}", "{max: 5}", "policy.yaml:8:30: checks.0: limits: tpr_at_0.01_fpr: max 5 is outside -1 to 1: "
         "write 0.05 for 5 %"),
        ("version: 1", "version: 1\nversion: 2", "policy.yaml:3:1: key 'version' is repeated (first on line 2)"),
        ("release_context: api", "release_context: public", "policy.yaml:3:18: release_context: 'public' is unknown; "
         "known here: api, internal, open-weights"),
        ("metric: tpr", "metric: tqr", "no limit on 'tqr_at_0.01_fpr'; did you mean 'tpr_at_0.01_fpr'?"),
        ('"2030-06-01"', '"2030-06-31"', "2030-06-31 is not a date"),
        ("waivers:", "promotion: {alias: latest}\nwaivers:", "policy.yaml:9:20: promotion: alias 'latest' is reserved"),
    ],
)  # fmt: skip
def test_every_mistake_is_placed_with_the_nearest_word(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in complaint(tmp_path, POLICY.replace(old, new, 1))


RELATIVE = """\
name: house
version: 1
release_context: api
checks:
  - check: utility
    limits:
      holdout_accuracy: {champion_drop: 0.05, min: 0.5}
promotion: {alias: champion}
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (", min: 0.5", "", "policy.yaml:7:25: checks.0.limits.holdout_accuracy: a limit relative to the champion "
         "needs either a min, which applies"),
        (", min: 0.5", ", max: 0.5", "policy.yaml:7:41: checks.0.limits.holdout_accuracy: champion_drop: goes with"),
        (", min", ", champion_rise: 0.1, min", "policy.yaml:7:41: checks.0.limits.holdout_accuracy: champion_drop: "),
        ("min: 0.5", "without_champion: wait", "policy.yaml:7:65: checks.0.limits.holdout_accuracy.without_champion: "
         "'wait' is unknown; known here: block, pass"),
        ("min: 0.5", "min: 0.5, without_champion: pass", "policy.yaml:7:25: checks.0.limits.holdout_accuracy: a limit"),
        ("champion_drop: 0.05, min: 0.5", "min: 0.5, without_champion: pass", "policy.yaml:7:54: checks.0.limits."
         "holdout_accuracy: without_champion: needs champion_drop"),
        ("champion_drop: 0.05", "champion_drop: 5", "policy.yaml:7:41: checks.0.limits.holdout_accuracy.champion_drop: "
         "Input should be less than or equal to 1 (found 5)"),
        ("champion_drop: 0.05", "champion_drop: -0.05", "policy.yaml:7:41: checks.0.limits.holdout_accuracy"),
        ("champion_drop: 0.05", "champion_drob: 0.05", "policy.yaml:7:26: checks.0.limits.holdout_accuracy."
         "champion_drob: unknown key; did you mean 'champion_drop'?"),
        ("champion_drop: 0.05, min: 0.5", "champion_rise: 0.05, max: 0.5", "policy.yaml:7:41: checks.0: limits: "
         "holdout_accuracy: champion_rise: no metric of this check can have it"),
        ("holdout_accuracy", "member_accuracy", "policy.yaml:7:40: checks.0: limits: member_accuracy: champion_drop: "
         "it is for holdout_accuracy"),
        ("promotion: {alias: champion}\n", "", "policy.yaml:5:3: checks: limits relative to the champion need "
         "its alias"),
        ("{champion_drop: 0.05, min: 0.5}", "{}", "policy.yaml:7:25: checks.0.limits.holdout_accuracy: a limit needs "
         "max or min, champion_drop or champion_rise"),
    ],
)  # fmt: skip
def test_a_limit_relative_to_the_champion_that_has_no_sense_is_placed(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    load_policy(write(tmp_path, RELATIVE))
    assert expected in complaint(tmp_path, RELATIVE.replace(old, new, 1))


def test_only_checks_that_compare_take_a_limit_relative_to_the_champion(tmp_path: Path) -> None:
    text = POLICY.replace("{max: 0.05}", "{champion_rise: 0.05, max: 0.5}")
    assert "champion_rise: unknown key" in complaint(tmp_path, text)


def test_a_limit_relative_to_the_champion_is_one_on_the_difference_and_a_waiver_names_that(tmp_path: Path) -> None:
    waiver = "{model: m, check: utility, metric: %s, owner: o, reason: r, expires: '2030-06-01'}"
    policy, _ = load_policy(write(tmp_path, RELATIVE + f"waivers: [{waiver % 'holdout_accuracy_vs_champion'}]\n"))
    assert policy.compares
    bounds = policy.checks[0].bounds
    assert {metric: str(limit) for metric, limit in bounds.items()} == {
        "holdout_accuracy": ">= 0.5",
        "holdout_accuracy_vs_champion": ">= -0.05",
    }
    lost = Measurement(
        metric="holdout_accuracy_vs_champion", value=-0.2, low=-0.3, high=-0.1, confidence=0.95, champion=0.9
    )
    fine = Measurement(metric="holdout_accuracy", value=0.7, low=0.6, high=0.8, confidence=0.95)
    findings = policy.judge("m", policy.checks[0], CheckResult(measurements=(fine, lost)), TODAY)
    assert [one.status for one in findings] == [Status.MET, Status.WAIVED]
    assert findings[1].bound == ">= -0.05 from the champion's 0.9"


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_policy(tmp_path / "absent.yaml")


def findings_of(policy: Policy, model: str, today: datetime.date) -> list[Status]:
    leak = Measurement(
        metric="tpr_at_0.01_fpr", subject="loss", value=0.3, low=0.2, high=0.4, confidence=0.95, method="by hand"
    )
    result = CheckResult(measurements=(leak,))
    return [finding.status for finding in policy.judge(model, policy.checks[0], result, today)]


def test_a_waiver_covers_its_model_until_its_last_day(tmp_path: Path) -> None:
    policy, _ = load_policy(write(tmp_path, POLICY))
    assert findings_of(policy, "digits", TODAY) == [Status.WAIVED]
    assert findings_of(policy, "digits", TODAY + datetime.timedelta(days=1)) == [Status.VIOLATED]
    assert findings_of(policy, "other", TODAY) == [Status.VIOLATED]


def test_a_limit_that_a_check_says_nothing_of_is_not_measured_and_left_out_only_by_leave(tmp_path: Path) -> None:
    policy, _ = load_policy(write(tmp_path, POLICY))
    (forgotten,) = policy.judge("digits", policy.checks[0], CheckResult(measurements=()), TODAY)
    assert forgotten.status is Status.NOT_MEASURED
    assert "neither a figure nor a reason" in str(forgotten.measurement.reason)
    assert verdict([forgotten]) is Verdict.UNDECIDED
    spared = CheckResult(measurements=(), left_out=("tpr_at_0.01_fpr",))
    assert policy.judge("digits", policy.checks[0], spared, TODAY) == []
    assert verdict([]) is Verdict.UNDECIDED


def undeclared(policy: Policy) -> dict[str, CheckResult]:
    """Results of the policy's checks of federations, clients and groups if the dossier declares none."""
    fields = {"backbone": {"name": "identity"}, "classes": 2, "optimizer": {"name": "sgd", "lr": 0.1}}
    split = np.array([Split.MEMBER, Split.HOLDOUT] * 50, dtype=np.int8)
    label = np.arange(100) % 2
    ids, embedding = np.array([f"r{row}" for row in range(100)]), np.zeros((100, 1), dtype=np.float32)
    data = AuditData(ids=ids, label=label, split=split, digest="d" * 64, embedding=embedding)
    bare = Subject(
        parse(fields | {"epochs": 1, "batch_size": 8}, Recipe, "recipe"), "a" * 64, data, {}, rounds="b" * 64
    )

    def results(job: Job) -> dict[str, Any]:
        assert isinstance(job, Score)
        return {"logits": np.eye(2)[label]}

    checks = [check for check in policy.checks if isinstance(check, WhereDeclared)]
    return {check.name: check.measure(bare, results, 0.95) for check in checks}


def test_who_declares_no_federation_no_clients_and_no_groups_meets_no_limit_on_them() -> None:
    federated, _ = load_policy(POLICIES / "federated.yaml")
    said = undeclared(federated)
    assert set(said) == {"robustness", "system_stress", "inversion", "trajectory", "fairness"}
    for check in federated.checks:
        if check.name in said:
            findings = federated.judge("m", check, said[check.name], TODAY)
            assert {one.measurement.metric for one in findings} == set(check.bounds)
            assert {one.status for one in findings} == {Status.NOT_MEASURED}
            binding = [one for one in findings if one.limit.severity is Severity.BLOCK]
            assert check.name != "robustness" or verdict(binding) is Verdict.UNDECIDED


def test_a_policy_may_let_undeclared_evidence_pass_and_the_report_says_so() -> None:
    federated, _ = load_policy(POLICIES / "federated.yaml")
    lenient = [
        check.model_copy(update={"required": False}) for check in federated.checks if isinstance(check, WhereDeclared)
    ]
    policy = federated.model_copy(update={"checks": tuple(lenient)})
    said = undeclared(policy)
    for check in policy.checks:
        assert policy.judge("m", check, said[check.name], TODAY) == []
        assert set(check.bounds) <= set(said[check.name].left_out)
        assert all("left out by the policy's leave, since" in note for note in said[check.name].notes)


@pytest.mark.parametrize("name", ["baseline", "strict", "report-only"])
def test_the_other_ready_policies_ask_for_nothing_that_a_plain_candidate_does_not_declare(name: str) -> None:
    policy, _ = load_policy(POLICIES / f"{name}.yaml")
    assert not undeclared(policy)


def test_idle_and_expired_waivers_are_reported(tmp_path: Path) -> None:
    policy, _ = load_policy(write(tmp_path, POLICY))
    assert "excused nothing" in policy.idle_waivers("digits", [], TODAY)[0]
    assert "has expired" in policy.idle_waivers("digits", [], TODAY + datetime.timedelta(days=1))[0]
    assert policy.idle_waivers("other", [], TODAY) == []


def membership(release: str, check: str = "") -> str:
    return f"name: p\nversion: 1\n{release}\nchecks:\n  - check: membership\n{check}"


@pytest.mark.parametrize(
    ("release", "surface"),
    [
        ("release_context: api", Release()),
        ("release_context: internal", Release(context="internal")),
        ("release_context: open-weights", Release(outputs="weights", context="open-weights")),
        ("release: {outputs: top_k, k: 1}", Release(outputs="top_k", k=1)),
        ("release: {outputs: label, context: internal}", Release(outputs="label", context="internal")),
    ],
)
def test_old_and_new_policies_say_what_leaves_the_house(tmp_path: Path, release: str, surface: Release) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(membership(release))
    assert load_policy(path)[0].surface == surface


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (membership(""), "release: say once what leaves the house"),
        (membership("release: {}\nrelease_context: api"), "release: say once what leaves the house"),
        (
            membership("release: {outputs: label}", "    attacks: [lira, span]\n"),
            "no listed attack can use a release of the label alone",
        ),
        (
            membership("release: {outputs: top_k, k: 1}", "    attacks: [span_lira]\n"),
            "no listed attack can use a release of the largest probability",
        ),
        (membership("release: {outputs: top_k}"), "k goes with outputs: top_k"),
        (membership("release: {outputs: label, digits: 2}"), "remove digits"),
        (membership("release: {outputs: labels}"), "release.outputs"),
        (membership("release: {digit: 2}"), "digits"),
    ],
)
def test_a_release_that_cannot_be_meant_is_refused_at_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_policy(path)
    assert re.search(r"p\.yaml:\d+:\d+", str(refused.value))
    assert expected in str(refused.value)


def test_a_policy_with_one_usable_attack_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(membership("release: {outputs: label}", "    attacks: [lira, gap]\n"))
    assert load_policy(path)[0].surface.outputs == "label"


@pytest.mark.parametrize(
    ("release", "check", "adaptation", "keeps"),
    [
        ("release_context: api", "", "head", ("head",)),
        ("release_context: api", "    attacks: [lira, loss]\n", "head", ()),
        ("release_context: api", "", "full", ()),
        ("release: {outputs: weights}", "", "full", ("span",)),
        ("release: {outputs: weights}", "    attacks: [lira]\n", "full", ()),
        ("release: {outputs: weights}", "", "head", ("head",)),
        ("release: {outputs: top_k, k: 1}", "", "head", ("head",)),
        ("release: {outputs: top_k, k: 1}", "", "full", ()),
        ("release: {outputs: label}", "", "head", ("head",)),
        ("release: {outputs: label}", "    attacks: [gap]\n", "head", ()),
        ("release: {outputs: label}", "", "full", ()),
    ],
)
def test_weights_are_kept_if_an_attack_that_the_release_allows_needs_them(
    tmp_path: Path, release: str, check: str, adaptation: str, keeps: tuple[str, ...]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(membership(release, check))
    assert load_policy(path)[0].keeps(recipe({"head": "image head", "full": "full"}[adaptation])) == keeps
