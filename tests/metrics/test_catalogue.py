"""Every metric has one record; checks, lint, words and README agree with it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from privacy_gate.auditing.policy import Policy
from privacy_gate.checks import AnyCheck
from privacy_gate.checks.base.check import asks_nothing
from privacy_gate.checks.power_law import PowerLaw
from privacy_gate.documents import load
from privacy_gate.errors import ConfigurationError
from privacy_gate.metrics.accuracy import accuracy
from privacy_gate.metrics.catalogue import FAMILIES, METRICS, REPORT_ONLY, find
from privacy_gate.metrics.inversion import inversion_advantage
from privacy_gate.metrics.membership import balanced_accuracy, precision
from privacy_gate.metrics.parties.fairness import client_std
from privacy_gate.metrics.parties.groups import group_gap
from privacy_gate.metrics.rates import FPRS, at, kind_and_fpr
from privacy_gate.reports import words
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status
from privacy_gate.verdict.metric import SUFFIX, Metric, Unit, versus_champion

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKS: dict[str, Any] = {kind.model_fields["check"].default: kind for kind in get_args(get_args(AnyCheck)[0])}
BANNED = ("compliant", "certified", "anonymous", "safe", "guarantee")

NINE = {
    "group_gap": 0.0,
    "client_std": 0.0,
    "disparate_mia": 0.0,
    "client_mia_gap": 0.0,
    "equalized_odds": 0.0,
    "inverted_backdoor": 0.0,
    "memorisation_q99": -1.0,
    "gradient_correlation": -1.0,
    "trace_correlation": -1.0,
}
"""Metrics that lint and reports once disagreed about, and the least figure of each."""


def limitable(kind: Any) -> tuple[str, ...]:
    """The metrics that the check's limits can name."""
    names: tuple[str, ...] = get_args(get_args(kind.model_fields["limits"].annotation)[0])
    return names


LIMITABLE = {name: check for check, kind in CHECKS.items() for name in limitable(kind)}
COMPARED = [versus_champion(METRICS[name]) for kind in CHECKS.values() for name in getattr(kind, "comparable", ())]
EVERY = {**METRICS, **{record.name: record for record in COMPARED}}


@pytest.mark.parametrize("check", CHECKS)
def test_every_metric_of_a_check_s_limits_has_a_record(check: str) -> None:
    assert set(limitable(CHECKS[check])) <= set(METRICS)


def test_every_target_of_the_power_law_has_a_record() -> None:
    assert set(get_args(get_args(PowerLaw.model_fields["target"].annotation)[0])) <= set(METRICS)


def test_every_record_is_limitable_or_listed_as_report_only() -> None:
    assert set(METRICS) == set(LIMITABLE) | REPORT_ONLY
    assert not set(LIMITABLE) & REPORT_ONLY


def test_every_name_that_a_measurement_is_made_under_has_a_record() -> None:
    made = re.compile(r'\b(?:not_)?measured\(\s*"(\w+)"')
    folders = (ROOT / "privacy_gate" / name for name in ("metrics", "checks", "auditing"))
    names = {found for folder in folders for file in folder.rglob("*.py") for found in made.findall(file.read_text())}
    assert len(names) > 20
    assert names <= set(METRICS)


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    text = "name: p\nversion: 1\nrelease_context: api\nchecks: [{check: fairness, limits: {group_gab: {max: 0.1}}}]\n"
    with pytest.raises(ConfigurationError, match="group_gap"):
        load(text, Policy, "policy.yaml")


def exactly(name: str, value: float) -> Measurement:
    return Measurement(metric=name, value=value, low=value, high=value, confidence=0.95)


@pytest.mark.parametrize("name", EVERY)
def test_lint_warns_exactly_of_limits_that_no_figure_can_violate(name: str) -> None:
    least, most = EVERY[name].range
    for side, end, inward in (("min", least, 1e-6), ("max", most, -1e-6)):
        if end is None:
            assert not asks_nothing(name, Limit(**{side: -1e9 if side == "min" else 1e9}))
            continue
        idle, strict = Limit(**{side: end}), Limit(**{side: end + inward})
        assert asks_nothing(name, idle)
        assert judged_status(exactly(name, end), idle) is Status.MET
        assert not asks_nothing(name, strict)
        assert judged_status(exactly(name, end), strict) is Status.VIOLATED


@pytest.mark.parametrize("name", NINE)
def test_lint_and_reports_agree_about_the_nine_that_they_disagreed_about(name: str) -> None:
    assert asks_nothing(name, Limit(min=NINE[name]))
    assert not asks_nothing(name, Limit(min=NINE[name] + 0.01))
    assert words.metric(name).signed is (NINE[name] < 0)


def test_ranges_are_reached_and_no_wider() -> None:
    rng, halves = np.random.default_rng(0), np.arange(100) % 2
    rows, none = np.zeros(100), np.zeros(60, dtype=bool)
    extremes: Mapping[str, tuple[Measurement, int]] = {
        "holdout_accuracy": (accuracy(halves < 2, 0.95, METRICS["holdout_accuracy"]), 1),
        "group_gap": (group_gap(halves == 1, halves.astype(str), 0.95), 1),
        "client_std": (client_std(np.array([0, 50]), np.array([50, 50]), 0.95, rng), 1),
        "balanced_accuracy": (balanced_accuracy(rows, rows + 1, 0.95), 0),
        "inversion_advantage": (inversion_advantage({"analytic": none}, 2, 0.95), 0),
    }
    for name, (found, end) in extremes.items():
        assert found.value == pytest.approx(METRICS[name].range[end]), name
        assert found.low is not None
        assert found.high is not None
        assert METRICS[name].range[0] <= found.low <= found.high <= METRICS[name].range[1]  # type: ignore[operator]
    for prior in (0.5, 0.1, 0.01):
        sure = precision(np.ones(2000), np.zeros(1000), prior, 0.95)
        assert sure.high == METRICS[sure.metric].range[1]


@pytest.mark.parametrize("name", EVERY)
def test_reports_show_percent_exactly_for_shares_and_points_exactly_for_their_differences(name: str) -> None:
    record = EVERY[name]
    assert words.metric(name) == record
    figure = words.shown(exactly(name, 0.5))
    assert figure is not None
    assert ("%" in figure.value) is (record.unit == "share")
    assert ("points" in figure.value) is (record.unit == "difference")


@pytest.mark.parametrize("name", LIMITABLE)
def test_readme_names_every_metric_that_a_policy_can_limit(name: str) -> None:
    (row,) = re.findall(rf"^\| `{LIMITABLE[name]}` \| (.+) \|$", README, re.MULTILINE)
    named = [re.escape(word).replace(r"\.\.\.", ".+") for word in re.findall(r"`([\w.]+)`", row)]
    assert any(re.fullmatch(like, name) for like in named)


def test_titles_are_distinct() -> None:
    titles = [record.title for record in EVERY.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", EVERY)
def test_texts_are_whole_and_promise_nothing(name: str) -> None:
    record = EVERY[name]
    for text in (record.resolves, record.means, record.remedy):
        assert text[0].isupper() or text[0].isdigit()
        assert text.endswith(".")
        assert "{" not in text
    assert not record.title.endswith(".")
    assert record.title[0].islower() or record.title.startswith(("Jain", "Gini"))
    text = " ".join((record.title, record.resolves, record.means, record.remedy)).lower()
    assert not [word for word in BANNED if re.search(rf"\b{word}", text)]


@pytest.mark.parametrize("name", EVERY)
def test_ranges_units_and_chance_fit_each_other(name: str) -> None:
    record, (least, most) = EVERY[name], EVERY[name].range
    assert least is None or most is None or least < most
    if record.unit == "share":
        assert least is not None
        assert most is not None
        assert 0 <= least < most <= 1
    if record.chance is not None:
        assert -math.inf if least is None else least <= record.chance
        assert most is None or record.chance <= most


def test_every_unit_is_in_use() -> None:
    assert {record.unit for record in METRICS.values()} == set(get_args(Unit))


def test_metrics_at_a_false_positive_rate_exist_at_every_rate_and_at_others() -> None:
    assert {name for name in METRICS if kind_and_fpr(name)} == {at(kind, fpr) for kind in FAMILIES for fpr in FPRS}
    tenth: Metric | None = find("recipe_tpr_at_1e-05_fpr")
    assert tenth is not None
    assert (tenth.chance, tenth.percent) == (1e-5, True)
    assert find("recipe_tpr_at_0.05_fpr" + SUFFIX) is not None
    assert find("left_handed") is None
