"""The judgement fails closed: a limit is only met by a whole interval."""

import itertools

import pytest
from pydantic import ValidationError

from privacy_gate.errors import gravest
from privacy_gate.verdict.judgement import (
    CheckResult,
    Control,
    Finding,
    Limit,
    Measurement,
    Severity,
    Status,
    Verdict,
    WaiverNote,
    judge,
    not_measured,
    verdict,
)


def figure(low: float, value: float, high: float) -> Measurement:
    return Measurement(metric="m", value=value, low=low, high=high, confidence=0.95, method="by hand")


AT_MOST = Limit(max=0.5)
AT_LEAST = Limit(min=0.5)


@pytest.mark.parametrize(
    ("measurement", "limit", "status"),
    [
        (figure(0.1, 0.2, 0.5), AT_MOST, Status.MET),
        (figure(0.1, 0.2, 0.51), AT_MOST, Status.VIOLATED),
        (figure(0.6, 0.7, 0.8), AT_MOST, Status.VIOLATED),
        (figure(0.5, 0.7, 0.8), AT_LEAST, Status.MET),
        (figure(0.49, 0.7, 0.8), AT_LEAST, Status.VIOLATED),
        (not_measured("m", "no data"), AT_MOST, Status.NOT_MEASURED),
        (not_measured("m", "no data"), AT_LEAST, Status.NOT_MEASURED),
    ],
)
def test_a_limit_is_judged_at_the_unfavourable_end(measurement: Measurement, limit: Limit, status: Status) -> None:
    assert judge("c", measurement, limit).status is status


def test_an_interval_that_straddles_the_limit_is_violated_and_called_uncertain() -> None:
    assert judge("c", figure(0.1, 0.2, 0.51), AT_MOST).uncertain
    assert not judge("c", figure(0.6, 0.7, 0.8), AT_MOST).uncertain
    assert judge("c", figure(0.4, 0.6, 0.8), AT_LEAST).uncertain


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_measurement_holds_a_figure_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ValidationError):
        figure(0.0, bad, 1.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 0.5},
        {"value": 0.5, "low": 0.6, "high": 0.7, "confidence": 0.95},
        {"value": 0.5, "low": 0.4, "high": 0.7, "confidence": 0.95, "reason": "none"},
        {},
    ],
)
def test_a_measurement_is_a_figure_with_its_interval_or_a_reason(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Measurement(metric="m", **fields)  # type: ignore[arg-type]


def test_a_limit_has_exactly_one_bound() -> None:
    for fields in ({}, {"max": 1.0, "min": 0.0}):
        with pytest.raises(ValidationError):
            Limit(**fields)  # type: ignore[arg-type]


def test_a_finding_cannot_contradict_its_figures() -> None:
    with pytest.raises(ValidationError):
        Finding(check="c", measurement=figure(0.6, 0.7, 0.8), limit=AT_MOST, status=Status.MET)


def test_a_waiver_excuses_a_violation_but_never_an_absence() -> None:
    note = WaiverNote(owner="o", reason="r", expires="2030-01-01")
    assert judge("c", figure(0.6, 0.7, 0.8), AT_MOST, note).status is Status.WAIVED
    assert judge("c", not_measured("m", "no data"), AT_MOST, note).status is Status.NOT_MEASURED


def test_a_result_is_completed_by_the_metrics_that_it_forgot() -> None:
    said = CheckResult(measurements=(figure(0.1, 0.2, 0.3), not_measured("n", "no data")), left_out=("o",))
    assert said.complete(["m", "n", "o"]) == said
    *before, added = said.complete(["m", "x"]).measurements
    assert tuple(before) == said.measurements
    assert (added.metric, added.measured) == ("x", False)


GOOD = judge("c", figure(0.1, 0.2, 0.3), AT_MOST)
BAD = judge("c", figure(0.6, 0.7, 0.8), AT_MOST)
ABSENT = judge("c", not_measured("m", "no data"), AT_MOST)
WARNED = judge("c", figure(0.6, 0.7, 0.8), Limit(max=0.5, severity=Severity.WARN))
HELD = Control(name="k", held=True, detail="")
FAILED = Control(name="k", held=False, detail="")


@pytest.mark.parametrize(
    ("findings", "controls", "expected"),
    [
        ([GOOD], [HELD], Verdict.APPROVED),
        ([GOOD, WARNED], [], Verdict.APPROVED),
        ([GOOD, BAD], [], Verdict.BLOCKED),
        ([BAD, ABSENT], [], Verdict.BLOCKED),
        ([GOOD, ABSENT], [], Verdict.UNDECIDED),
        ([GOOD], [FAILED], Verdict.UNDECIDED),
        ([BAD], [FAILED], Verdict.UNDECIDED),
        ([], [], Verdict.UNDECIDED),
    ],
)
def test_the_verdict_follows_from_findings_and_controls(
    findings: list[Finding], controls: list[Control], expected: Verdict
) -> None:
    for order in itertools.permutations(findings):
        assert verdict(order, controls) is expected


def test_the_gravest_code_wins() -> None:
    assert [gravest(codes) for codes in ([0, 4], [4, 3], [3, 2], [2, 6], [6, 7], [7, 5], [])] == [4, 3, 2, 6, 7, 5, 0]
