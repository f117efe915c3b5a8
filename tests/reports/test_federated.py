"""Reports on federations: rules that would pass, the sources of gaps between groups, and the backbone."""

import html
import json
import re
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from privacy_gate.dossier.backbone import PublicWeights
from privacy_gate.dossier.federation import ClientPrivacy, Federation
from privacy_gate.reports import FORMATS
from privacy_gate.reports.coverage import coverage
from privacy_gate.reports.details import recipe_facts
from privacy_gate.reports.hostile import HEADS, cells
from privacy_gate.verdict.exhibits import ByzantineLine, ByzantinePlot
from privacy_gate.verdict.judgement import CheckResult, Measurement, RuleTable, RuleTrial, not_measured, rule_passes
from privacy_gate.verdict.report import CheckRecord, Report, parse_report

DROPS: Mapping[str, tuple[float, float, float, str]] = {
    "mean": (0.71, 0.843, 0.97, "ipm_10"),
    "median": (0.08, 0.121, 0.155, "label_flip"),
    "nnm + trimmed_mean": (0.04, 0.062, 0.088, "sign_flip"),
}
TAXES = {"mean": (0.0, 0.0, 0.0), "median": (0.02, 0.035, 0.049), "nnm + trimmed_mean": (-0.004, 0.008, 0.021)}


def figure(metric: str, low: float, value: float, high: float, subject: str = "") -> Measurement:
    return Measurement(metric=metric, low=low, value=value, high=high, subject=subject, confidence=0.95)


def trial(rule: str, limit: float = 0.15, tax_limit: float | None = None) -> RuleTrial:
    drop, tax = figure("byzantine_drop", *DROPS[rule]), figure("robustness_tax", *TAXES[rule])
    passes = rule_passes(drop, tax, limit, tax_limit)
    return RuleTrial(rule=rule, clean=0.944 - tax.value, drop=drop, tax=tax, passes=passes)  # type: ignore[operator]


def table(tax_limit: float | None = None) -> RuleTable:
    rules = tuple(trial(rule, tax_limit=tax_limit) for rule in DROPS)
    return RuleTable(clients=10, byzantine=2, drop_limit=0.15, tax_limit=tax_limit, rules=rules)


@pytest.fixture(scope="module")
def report(samples: dict[str, Report]) -> Report:
    lines = (
        ByzantineLine(rule="mean", byzantine=(0, 1, 2, 3, 4), accuracy=(0.944, 0.12, 0.101, 0.1, 0.1)),
        ByzantineLine(rule="median", byzantine=(0, 2), accuracy=(0.909, 0.823)),
        ByzantineLine(rule="nnm + trimmed_mean", byzantine=(0, 2), accuracy=(0.936, 0.882)),
    )
    robustness = CheckResult(
        measurements=(figure("byzantine_drop", *DROPS["mean"]),),
        exhibits=(ByzantinePlot(clients=10, lines=lines), table()),
    )
    parts = (
        figure("group_gap_part", 0.03, 0.071, 0.112, "inherited from the frozen backbone"),
        figure("group_gap_part", -0.01, 0.012, 0.034, "added by fine-tuning"),
        figure("group_gap_part", 0.001, 0.023, 0.045, "added by federation"),
    )
    fairness = CheckResult(measurements=parts, notes=("fairness: of the gap, 7.1 pp come from the frozen backbone",))
    added = tuple(
        CheckRecord(check=name, settings=settings, result=result)
        for name, settings, result in (
            ("robustness", {"attacks": ["sign_flip", "ipm_10"]}, robustness),
            ("fairness", {}, fairness),
        )
    )
    whole = samples["blocked"]
    return whole.model_copy(update={"checks": whole.checks + added})


def seen(report: Report, name: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", FORMATS[name].render(report))).replace("\u00a0", " ")


@pytest.mark.parametrize("name", ["markdown", "html"])
def test_every_rule_is_listed_with_its_tax_its_drop_and_whether_it_passes(report: Report, name: str) -> None:
    page, rules = seen(report, name), table()
    assert all(head in page for head in HEADS)
    for one in rules.rules:
        for cell in cells(rules, one):
            assert cell in page
    assert cells(rules, rules.rules[0])[:3] == ("mean (the recipe's own)", "no", "ipm 10")
    median = ("no", "label flip", "90.9 %", "3.5 points [2.0, 4.9]", "12.1 points [8.0, 15.5]")
    assert cells(rules, rules.rules[1])[1:] == median
    assert cells(rules, rules.rules[2])[1] == "yes"


def test_the_json_report_holds_the_table_and_refuses_one_that_contradicts_itself(report: Report) -> None:
    assert parse_report(FORMATS["json"].render(report), "test") == report
    document = table().model_dump(mode="json")
    document["rules"][0]["passes"] = True
    with pytest.raises(ValidationError, match="mean: passes is True, but its figures mean the opposite"):
        RuleTable.model_validate_json(json.dumps(document))


def test_a_rule_whose_tax_is_above_its_limit_passes_no_more_and_an_absent_figure_never_does() -> None:
    assert [one.passes for one in table().rules] == [False, False, True]
    assert [one.passes for one in table(tax_limit=0.01).rules] == [False, False, False]
    drop, tax = figure("byzantine_drop", *DROPS["nnm + trimmed_mean"]), not_measured("robustness_tax", "needs seeds")
    assert rule_passes(drop, tax, 0.15, None)
    assert not rule_passes(drop, tax, 0.15, 0.5)
    assert not rule_passes(not_measured("byzantine_drop", "needs seeds"), tax, 0.15, None)


@pytest.mark.parametrize("name", FORMATS)
def test_the_source_of_a_gap_is_in_every_format(report: Report, name: str) -> None:
    page = seen(report, name)
    assert "7.1 pp come from the frozen backbone" in page
    if name != "text":
        assert all(f"added by {what}" in page for what in ("fine-tuning", "federation"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_backbone_and_its_licence_are_in_every_format(report: Report, name: str) -> None:
    page = seen(report, name)
    assert "tf_efficientnet_lite0" in page
    assert "5e" * 32 in page
    assert ("not declared" if name != "json" else '"licence": null') in page
    weights = PublicWeights(uri="file:///lite0.safetensors", sha256="5e" * 32, licence="Apache-2.0")
    backbone = report.recipe.backbone.model_copy(update={"weights": weights})
    declared = report.model_copy(update={"recipe": report.recipe.model_copy(update={"backbone": backbone})})
    assert "Apache-2.0" in seen(declared, name)


def test_the_federation_is_shown_with_its_privacy_of_clients(samples: dict[str, Report]) -> None:
    for by in ("server", "clients"):
        private = ClientPrivacy(noise_multiplier=1.1, clip=0.5, noise_by=by)
        federation = Federation(rounds=30, secure_aggregation=True, privacy=private)
        recipe = samples["approved"].recipe.model_copy(update={"federation": federation})
        told = dict(recipe_facts(samples["approved"].model_copy(update={"recipe": recipe})))["Federation"]
        settings = f"noise_multiplier 1.1 by the {by}, clip 0.5, delta 1e-05"
        assert told.endswith(f"secure aggregation, privacy of clients: {settings}")


def test_coverage_names_every_attack_that_ran_and_nothing_else(report: Report) -> None:
    told = {line.what: line.outcome for line in coverage(report)}
    assert told["Poisoning of a federation"] == "tested by robustness (sign_flip, ipm_10)"  # not only the worst attack
    assert told["Whom the model serves worse"] == "tested by fairness"
    assert "lira" in told["Membership inference"]


def test_the_training_of_a_federation_is_shown_in_full(samples: dict[str, Report]) -> None:
    def facts(**settings: object) -> dict[str, str]:
        federation = Federation.model_validate({"rounds": 30, **settings})
        recipe = samples["approved"].recipe.model_copy(update={"federation": federation, "epochs": 1})
        return dict(recipe_facts(samples["approved"].model_copy(update={"recipe": recipe})))

    assert facts()["Training"] == "1 epoch per client and round, batches of 64, seed 7"
    assert facts(steps=5)["Training"].startswith("5 steps per client and round")
    some = facts(participation=0.25, prox=0.01)["Federation"]
    assert "30 rounds, 25 % of clients in each; mean, tolerates 0 byzantine; server avg, FedProx mu 0.01" in some
    assert dict(recipe_facts(samples["approved"]))["Training"] == "30 epochs, batches of 64, seed 7"
