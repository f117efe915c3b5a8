"""The holdout rows that a policy needs: with that many the best outcome meets a limit, with one fewer it cannot."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from privacy_gate.checks import AnyCheck
from privacy_gate.checks.base.check import Subject, asks_nothing
from privacy_gate.checks.base.versus import ChampionLimit, Versus
from privacy_gate.checks.corruption import Corruption
from privacy_gate.checks.disparity import Disparity
from privacy_gate.checks.evasion import Evasion, UniversalSettings
from privacy_gate.checks.fairness import Fairness
from privacy_gate.checks.membership import TPRS, Membership
from privacy_gate.checks.robustness import Robustness
from privacy_gate.checks.stress import SystemStress
from privacy_gate.checks.trajectory import TrajectoryMia
from privacy_gate.checks.utility import Utility
from privacy_gate.documents import dump, parse
from privacy_gate.dossier.champion import Champion
from privacy_gate.dossier.dataset import AuditData, Columns, Split, describe_table
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, DatasetError
from privacy_gate.gate.lint import lint_dossier, lint_policy
from privacy_gate.jobs.kinds import Corrupt, Embed, Evade, Federate, Job, Probe, Score, TrainReference, Universal
from privacy_gate.metrics.membership import PRIORS, balanced_accuracy, precision, tpr_at_fpr
from privacy_gate.metrics.parties.disparity import accusations, vulnerability_gap
from privacy_gate.verdict.judgement import Limit, Measurement, Severity, Status, judged_status

CLASSES, MEMBERS = 4, 4000
INPUT = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
PLAIN = {"classes": CLASSES, "optimizer": {"name": "sgd", "lr": 0.1}, "epochs": 1, "batch_size": 8}
ON_IMAGES = {"backbone": {"name": "test_resnet", "weights": {"uri": "w", "sha256": "0" * 64}}, "input": INPUT}
FEDERATION = {"clients": {"partition": "column"}, "rounds": 8, "aggregator": {"name": "median", "tolerates": 2}}
FEDERATED = {"backbone": {"name": "identity"}, "federation": FEDERATION}


def subject(holdout: int, *, images: bool) -> Subject:
    """Classes and clients of one size."""
    rows = MEMBERS + holdout
    data = AuditData(
        ids=np.array([f"r{row}" for row in range(rows)]),
        label=np.arange(rows) % CLASSES,
        split=np.where(np.arange(rows) < MEMBERS, Split.MEMBER, Split.HOLDOUT).astype(np.int8),
        digest="d" * 64,
        client=np.array(["north", "south"])[np.arange(rows) % 2],
        group=np.array(["f", "m"])[np.arange(rows) % 2],
        embedding=None if images else np.zeros((rows, 1), dtype=np.float32),
        image=(lambda row: b"") if images else None,
    )
    recipe = parse(PLAIN | (ON_IMAGES if images else FEDERATED), Recipe, "recipe")
    return Subject(recipe, "a" * 64, data, {}, rounds="b" * 64)


def nothing_is_told(judged: Subject) -> Callable[[Job], Mapping[str, Any]]:
    """The best results: a model that reveals nothing about its members and that no corruption or attack changes, and
    federations that lose no accuracy to hostile clients."""
    data = judged.data
    rows = data.rows
    logits = np.eye(CLASSES)[data.label]

    def results(job: Job) -> Mapping[str, Any]:
        match job:
            case Federate():
                return {
                    "accuracy": np.ones(1),
                    "hit": np.ones(int((data.split == Split.HOLDOUT).sum())),
                    "heterogeneity": np.zeros(1),
                }
            case Probe():
                return {"logits": logits}
            case Score():
                return {"logits": logits, "confidence": np.zeros(rows)}
            case TrainReference():
                included = (np.arange(rows) + job.index) % 2 == 0
                zeros = np.zeros(rows)
                return {"confidence": zeros, "included": included, "residual": zeros, "logits": logits}
            case Embed():
                return {"features": np.zeros((rows, 1))}
            case Corrupt():
                return {"predicted": data.label[list(job.rows)]}
            case Evade():
                yes, no = (np.full(len(job.rows), each) for each in (True, False))
                return {"right": yes, "untargeted": yes, "standing": yes, "guessed": no, "wide": no, "flat": no}
            case Universal():
                plain = data.label[list(job.tried)]
                names = ("probe_plain", "predicted_plain", "predicted_shifted", "predicted_noise")
                return {"probe_shifted": plain + 1, **dict.fromkeys(names, plain)}
        z = np.repeat(np.where(data.split == Split.MEMBER, -1.0, 0.0)[None, :, None], 2, axis=2)
        found = {"rounds": np.array([5]), "distance": np.zeros(1), "seen": np.array([5, 5]), "client": np.arange(2)}
        return found | {"z": np.concatenate([z, z])}

    return results


def statuses(check: AnyCheck, holdout: int, confidence: float) -> dict[str, set[Status]]:
    """The best status of each limit over all subjects."""
    images = check.name in ("corruption", "evasion")
    judged = subject(holdout, images=images)
    found: dict[str, set[Status]] = {}
    for each in check.measure(judged, nothing_is_told(judged), confidence).measurements:
        if each.metric in check.bounds:
            found.setdefault(each.metric, set()).add(judged_status(each, check.bounds[each.metric]))
    return found


DISPARITY: Any = {
    "vulnerability": Limit(max=0.1),
    "vulnerability_gap": Limit(max=0.1),
    "disparity_p_value": Limit(min=0.01),
    "disparate_mia": Limit(max=0.1, severity=Severity.WARN),
    "disparate_mia_p_value": Limit(min=0.01),
}
TRAJECTORY: Any = {
    "trajectory_tpr": Limit(max=0.05),
    "client_mia_gap": Limit(max=0.05, severity=Severity.WARN),
    "client_mia_gap_p_value": Limit(min=0.01),
}
LOSSES: Any = {"byzantine_drop": Limit(max=0.05), "robustness_tax": Limit(max=0.05)}
STRESS: Any = dict.fromkeys(("heterogeneity_drop", "gone_drop", "absent_drop", "stale_drop"), Limit(max=0.03))
GAP: Any = {"group_gap": Limit(max=0.1)}
FEW: Any = {"alternatives": False, "attacks": ("sign_flip",), "seeds": 5}
COMMON: Any = {"references": 8, "attack": "loss", "permutations": 499, "limits": DISPARITY}
ROBUST: Any = {"robust_accuracy": ChampionLimit(min=0.9)}
TRANSFER: Any = {"universal_transfer": ChampionLimit(max=0.05)}
CASES: dict[str, tuple[AnyCheck, dict[str, int]]] = {
    "disparity at one rate": (Disparity(**COMMON, fpr=0.03), dict.fromkeys(DISPARITY, 334)),
    "disparity at the best": (Disparity(**COMMON), dict.fromkeys(DISPARITY, 100)),
    "trajectory": (TrajectoryMia(limits=TRAJECTORY), dict.fromkeys(TRAJECTORY, 1000)),
    "robustness": (Robustness(**FEW, limits=LOSSES), dict.fromkeys(LOSSES, 78)),
    "system_stress": (SystemStress(limits=STRESS), dict.fromkeys(STRESS, 130)),
    "fairness": (Fairness(attribution=False, limits=GAP), {"group_gap": 72}),
    "corruption": (Corruption(limits={"corruption_ratio": ChampionLimit(min=1)}), {"corruption_ratio": 100}),
    "evasion": (Evasion(limits=ROBUST), {"robust_accuracy": 36}),
    "evasion, any accuracy": (Evasion(limits={"robust_accuracy": ChampionLimit(min=0.1)}), {"robust_accuracy": 20}),
    "evasion, half crafted on": (Evasion(limits=TRANSFER, universal=UniversalSettings()), {"universal_transfer": 144}),
    "evasion, few crafted on": (
        Evasion(limits=TRANSFER | ROBUST, universal=UniversalSettings(images=50)),
        {"universal_transfer": 122, "robust_accuracy": 36},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_best_outcome_meets_a_limit_with_as_many_rows_and_with_none_fewer(name: str) -> None:
    check, expected = CASES[name]
    needed = check.needed_holdout(0.95)
    assert needed == expected
    for metric, rows in needed.items():
        assert rows is not None
        assert statuses(check, rows, 0.95)[metric] == {Status.MET}
        assert Status.MET not in statuses(check, rows - 1, 0.95)[metric]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("limit", [0.97, 0.5, 0.0])
def test_robust_accuracy_needs_what_its_interval_at_one_does(confidence: float, limit: float) -> None:
    check = Evasion(limits={"robust_accuracy": ChampionLimit(min=limit)})
    rows = check.needed_holdout(confidence)["robust_accuracy"]
    assert rows is not None
    assert statuses(check, rows, confidence)["robust_accuracy"] == {Status.MET}
    assert statuses(check, rows - 1, confidence)["robust_accuracy"] != {Status.MET}


@pytest.mark.parametrize(
    ("limit", "images", "holdout"),
    [(ChampionLimit(min=0.99), 300, 3000), (ChampionLimit(min=1.0), 500, 3000), (ChampionLimit(max=-0.1), 100, 200)],
)
def test_a_limit_that_no_number_of_rows_can_meet_is_named(limit: ChampionLimit, images: int, holdout: int) -> None:
    check = Evasion(images=images, limits={"robust_accuracy": limit})
    assert check.needed_holdout(0.95) == {"robust_accuracy": None}
    assert statuses(check, holdout, 0.95)["robust_accuracy"] == {Status.VIOLATED}


def unseen(metric: str, rows: int, members: int = 10**6) -> Measurement:
    """The best figure: every member scores below every holdout row, or all rows score the same."""
    member, holdout = np.zeros(members), np.zeros(rows) if metric == "balanced_accuracy" else np.ones(rows)
    if metric == "balanced_accuracy":
        return balanced_accuracy(member, holdout, 0.95)
    if metric in TPRS:
        return tpr_at_fpr(member, holdout, TPRS[metric], 0.95)
    prior = next(prior for prior in PRIORS if metric == f"precision_at_{prior:g}_prior")
    return precision(member, holdout, prior, 0.95)


MEMBERSHIP = {
    "tpr_at_0.1_fpr": (Limit(max=0.2), 100),
    "tpr_at_0.01_fpr": (Limit(max=0.05), 1000),
    "tpr_at_0.001_fpr": (Limit(max=0.01), 10_000),
    "balanced_accuracy": (Limit(max=0.52), 601),
    "precision_at_0.5_prior": (Limit(max=0.7), 1000),
    "precision_at_0.1_prior": (Limit(max=0.2), 1000),
    "precision_at_0.01_prior": (Limit(max=0.05), 1000),
}


@pytest.mark.parametrize("metric", MEMBERSHIP)
def test_membership_needs_what_resolves_its_rates_and_chance(metric: str) -> None:
    limit, rows = MEMBERSHIP[metric]
    check = Membership(limits={metric: limit, "auc": Limit(max=0.6)})
    assert check.needed_holdout(0.95) == {metric: rows}
    assert judged_status(unseen(metric, rows), limit) is Status.MET
    assert judged_status(unseen(metric, rows - 1), limit) is not Status.MET


def test_any_holdout_may_meet_a_limit_on_the_auc_and_none_a_balanced_accuracy_of_chance() -> None:
    check = Membership(limits={"auc": Limit(max=0.5), "balanced_accuracy": Limit(max=0.5)})
    assert check.needed_holdout(0.95) == {"balanced_accuracy": None}


def test_a_gap_may_be_seen_to_be_none_with_the_fewest_rows_that_are_measured() -> None:
    """In both groups members are accused as often as holdout, but members are mostly in one group and holdout in the
    other: the vulnerability of all examples is far above that of either group."""
    member, holdout = np.repeat([9.0, 0.0], [90_000, 10_000]), np.repeat([8.0, 1.0], [10, 90])
    groups = np.repeat(["a", "b"], [90_000, 10_000]), np.repeat(["a", "b"], [10, 90])
    gap = vulnerability_gap(accusations(member, holdout, *groups, 0.1), 0.95)
    assert judged_status(gap, Limit(max=0.0)) is Status.MET


DROP, RISE = (ChampionLimit(**{side: 0.05}, without_champion="pass") for side in ("champion_drop", "champion_rise"))
ALIKE: dict[str, tuple[Versus, int]] = {
    "utility": (Utility(limits={"holdout_accuracy": DROP}), 73),
    "evasion": (Evasion(limits={"robust_accuracy": DROP}), 73),
    "evasion, far more": (
        Evasion(limits={"robust_accuracy": ChampionLimit(champion_drop=0.5, without_champion="pass")}),
        20,
    ),
    "evasion, half crafted on": (Evasion(limits={"universal_transfer": RISE}, universal=UniversalSettings()), 146),
    "evasion, few crafted on": (
        Evasion(limits={"universal_transfer": RISE}, universal=UniversalSettings(images=50)),
        123,
    ),
    "corruption": (Corruption(limits={"corruption_ratio": DROP}), 100),
    "corruption, by its interval": (
        Corruption(limits={"corruption_ratio": ChampionLimit(champion_drop=0.02, without_champion="pass")}),
        189,
    ),
}


def beside_its_equal(check: Versus, holdout: int, confidence: float) -> dict[str, Status]:
    """Statuses of limits relative to a champion that predicts every row like the candidate, by the checks' own code."""
    plain = subject(holdout, images=check.name in ("corruption", "evasion"))
    judged = replace(plain, champion=Champion("champion", "1", artifact="c" * 64, recipe=plain.recipe))
    found = check.measure(judged, nothing_is_told(judged), confidence).measurements
    limited = (each for each in found if each.metric in check.bounds)
    return {each.metric: judged_status(each, check.bounds[each.metric]) for each in limited}


@pytest.mark.parametrize("name", ALIKE)
def test_a_candidate_like_the_champion_passes_with_as_many_rows_and_with_none_fewer(name: str) -> None:
    check, expected = ALIKE[name]
    ((metric, rows),) = check.rows_to_agree(0.95).items()
    assert rows == expected
    assert beside_its_equal(check, rows, 0.95)[metric] is Status.MET
    assert beside_its_equal(check, rows - 1, 0.95)[metric] is not Status.MET


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("drop", [0.01, 0.1, 0.2])
def test_rows_to_agree_follow_the_judgement_whatever_the_confidence(confidence: float, drop: float) -> None:
    check = Utility(limits={"holdout_accuracy": ChampionLimit(champion_drop=drop, min=0.0)})
    rows = check.rows_to_agree(confidence)["holdout_accuracy_vs_champion"]
    assert rows is not None
    assert beside_its_equal(check, max(rows, 12), confidence)["holdout_accuracy_vs_champion"] is Status.MET
    assert beside_its_equal(check, rows - 1, confidence)["holdout_accuracy_vs_champion"] is not Status.MET


@pytest.mark.parametrize(
    "check",
    [
        Utility(limits={"holdout_accuracy": ChampionLimit(champion_drop=0.0, min=0.5)}),
        Evasion(images=72, limits={"robust_accuracy": DROP}),
        Corruption(images=188, limits={"corruption_ratio": ChampionLimit(champion_drop=0.02, min=0.5)}),
    ],
    ids=lambda check: check.name,
)
def test_a_limit_that_no_equal_of_the_champion_can_meet_is_named(check: Versus) -> None:
    ((metric, rows),) = check.rows_to_agree(0.95).items()
    assert rows is None
    assert beside_its_equal(check, 3000, 0.95)[metric] is Status.VIOLATED


def test_lint_names_the_rows_that_an_equal_of_the_champion_needs(tmp_path: Path) -> None:
    text = """name: p
version: 1
release_context: api
checks:
  - check: utility
    limits: {holdout_accuracy: {champion_drop: 0.05, min: 0.5}}
  - check: corruption
    limits: {corruption_ratio: {champion_drop: 0, min: 0.5}}
promotion: {alias: champion}
"""
    (tmp_path / "policy.yaml").write_text(text)
    metric = "  holdout_accuracy_vs_champion: "
    equal = f"{metric}a candidate that agrees with the champion on every row needs 73 holdout rows to pass"
    for holdout, warned in ((72, True), (73, False), (None, False)):
        lines = lint_policy(tmp_path / "policy.yaml", holdout)
        (line,) = [one for one in lines if one.startswith(equal)]
        assert line.endswith(": warning: with your 72 it cannot") is warned
        assert any("corruption_ratio_vs_champion" in one and "cannot meet this limit with any" in one for one in lines)


POLICY = """
name: house
version: 1
release_context: api
checks:
  - check: disparity
    limits: {vulnerability_gap: {max: 0.1, severity: warn}}
  - check: evasion
    images: 100
    limits: {robust_accuracy: {min: 0.99}}
  - check: corruption
    limits: {corruption_ratio: {min: 0.5}}
  - check: utility
    limits: {holdout_accuracy: {min: 0.8}}
"""


def test_no_rows_show_that_groups_do_not_differ_at_all_and_clients_need_what_is_not_known() -> None:
    none, clients = Limit(max=0.0), Limit(max=0.1)
    assert Fairness(limits={"group_gap": none, "client_std": clients}).needed_holdout(0.95) == {"group_gap": None}
    assert Robustness(limits={"breakdown_point": Limit(min=0.2)}).needed_holdout(0.95) == {}


def test_lint_names_the_rows_that_each_limit_needs(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    told = "\n".join(lint_policy(tmp_path / "policy.yaml", 99))
    assert "vulnerability_gap needs at least 100 holdout rows to meet its limit: with your 99 no model can" in told
    assert "robust_accuracy: no model can meet this limit with any number of holdout rows" in told
    assert "corruption_ratio needs at least 100 holdout rows to meet its limit: with" in told
    assert "holdout_accuracy needs" not in told
    assert "with your" not in "\n".join(lint_policy(tmp_path / "policy.yaml", 100))
    assert "with your" not in "\n".join(lint_policy(tmp_path / "policy.yaml", None))


@pytest.mark.parametrize(("setting", "told"), [("", False), ("required: true", False), ("required: false", True)])
def test_lint_names_checks_that_pass_without_declared_evidence(tmp_path: Path, setting: str, told: bool) -> None:
    check = f"  - check: inversion\n    {setting}\n    limits: {{inversion_advantage: {{max: 0.1}}}}\n"
    (tmp_path / "policy.yaml").write_text(POLICY + check)
    lines = lint_policy(tmp_path / "policy.yaml", None)
    assert any("inversion: required: false: a dossier without what the check needs" in line for line in lines) is told


def test_a_check_whose_need_is_not_known_says_nothing() -> None:
    assert Utility(limits={"holdout_accuracy": ChampionLimit(min=0.8)}).needed_holdout(0.95) == {}


def test_lint_names_the_outcome_without_a_champion(tmp_path: Path) -> None:
    limits = {
        "{champion_drop: 0.05, min: 0.5}": "only the other limit applies",
        "{champion_drop: 0.05, without_champion: block}": "it is not measured",
        "{champion_drop: 0.05, without_champion: pass}": "it passes",
    }
    for limit, told in limits.items():
        text = f"checks: [{{check: utility, limits: {{holdout_accuracy: {limit}}}}}]\npromotion: {{alias: champion}}\n"
        (tmp_path / "policy.yaml").write_text(POLICY.partition("checks:")[0] + text)
        lines = lint_policy(tmp_path / "policy.yaml", None)
        assert f"  utility: holdout_accuracy: without a champion {told}" in lines
        assert "  utility: holdout_accuracy_vs_champion >= -0.05 (block)" in lines


RECIPE_FILE = """backbone: {name: identity}
classes: 2
optimizer: {name: sgd, lr: 0.1}
epochs: 1
batch_size: 1
federation:
  rounds: 2
  clients: CLIENTS
  aggregator: {name: krum, before: [bucketing], tolerates: 1}
"""


@pytest.mark.parametrize("enough", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_a_dossier_whose_rule_too_few_clients_take_part_for_is_refused(
    enough: bool, counted: bool, tmp_path: Path
) -> None:
    clients = 9 if enough else 8  # five buckets, or four
    table = {
        "id": [f"r{row}" for row in range(clients + 2)],
        "label": [0, 1] * (clients // 2 + 1) + [0] * (clients % 2),
        "split": ["member"] * clients + ["holdout"] * 2,
        "x": [[0.0, float(row)] for row in range(clients + 2)],
        "site": [f"c{row}" for row in range(clients + 2)],
    }
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    who = f"{{partition: iid, count: {clients}}}" if counted else "{partition: column}"
    (tmp_path / "recipe.yaml").write_text(RECIPE_FILE.replace("CLIENTS", who))
    manifest = describe_table(str(tmp_path / "t.parquet"), Columns(embedding="x", client="site"))
    (tmp_path / "data.yaml").write_text(dump(manifest))
    if enough:
        assert lint_dossier(tmp_path, read_table=True)
        return
    said = "krum with tolerates: 1 needs at least 5 updates a round, found 4: lower tolerates"
    where = f"recipe.yaml:9:15: federation: aggregator: {said}" if counted else f"trained on this table: {said}"
    with pytest.raises(ConfigurationError if counted else DatasetError, match=re.escape(where)):
        lint_dossier(tmp_path, read_table=True)


def test_limits_that_no_figure_can_violate_get_a_warning_with_their_place(tmp_path: Path) -> None:
    policy = """name: p
version: 1
release_context: api
checks:
  - check: utility
    limits:
      holdout_accuracy: {severity: warn, min: 0}
      member_accuracy: {min: 0.01}
  - check: evasion
    limits: {robust_accuracy: {champion_drop: 1, without_champion: pass}}
  - check: membership
    limits: {auc: {max: 1}, tpr_at_0.1_fpr: {max: 0.99}}
  - check: robustness
    limits:
      byzantine_drop:
        max: 1.0
      robustness_tax: {min: 0}
promotion: {alias: champion}
"""
    (tmp_path / "policy.yaml").write_text(policy)
    told = [line for line in lint_policy(tmp_path / "policy.yaml", None) if "warning" in line]
    places = [line.split(": ")[0].removeprefix(f"  {tmp_path}/policy.yaml") for line in told]
    assert places == [":7:47", ":10:47", ":12:25", ":16:14"]
    assert "warning: every holdout_accuracy is >= 0, so this limit only asks for the metric to be measured" in told[0]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "policies").glob("*.yaml")), ids=lambda path: path.name
)
def test_no_limit_of_the_policies_that_people_copy_asks_for_nothing(path: Path) -> None:
    assert not [line for line in lint_policy(path, None) if "warning" in line]


def test_what_no_figure_can_violate_is_what_the_best_and_the_worst_meet() -> None:
    """A figure of 0 or 1, whichever is worse, with the narrowest possible interval."""
    for metric, worst, limit in (
        ("auc", 1.0, Limit(max=1)),
        ("inversion_advantage", 1.0, Limit(max=1)),
        ("robust_accuracy", 0.0, Limit(min=0)),
        ("robust_accuracy", 0.0, Limit(min=-0.5)),
        ("group_gap", -1.0, Limit(min=-1)),
        ("corruption_ratio", 0.0, Limit(min=0)),
        ("robust_accuracy_vs_champion", -1.0, Limit(min=-1)),
    ):
        assert asks_nothing(metric, limit)
        assert judged_status(exactly(metric, worst), limit) is Status.MET
    for metric, possible, limit in (
        ("auc", 1.0, Limit(max=0.999)),
        ("robust_accuracy", 0.0, Limit(min=1e-9)),
        ("byzantine_drop", -0.1, Limit(min=0)),
        ("epsilon_bound", 7.0, Limit(max=5)),
        ("slope_at_0.1_fpr", -3.0, Limit(min=-2)),
        ("corruption_ratio", 1.2, Limit(max=1)),
        ("robust_accuracy_vs_champion", -0.1, Limit(min=-0.05)),
    ):
        assert not asks_nothing(metric, limit)
        assert judged_status(exactly(metric, possible), limit) is Status.VIOLATED


def exactly(metric: str, value: float) -> Measurement:
    return Measurement(metric=metric, value=value, low=value, high=value, confidence=0.95, method="by hand")
