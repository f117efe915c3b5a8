"""Measurements, limits, findings, and the judgement that joins them. Pure, and closed by default."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import Record
from privacy_gate.errors import APPROVED, BLOCKED, UndecidedError
from privacy_gate.verdict.exhibits import (
    ByzantinePlot,
    Count,
    GradientScatter,
    Histogram,
    LawPlot,
    Rate,
    Roc,
    VulnerableRows,
)


class Measurement(Record):
    """A figure with its interval, or the reason why there is none.

    metric   what is measured, for instance tpr_at_0.01_fpr
    subject  of what, for instance the attack or the split; empty where the metric says it all
    value, low, high   low <= value <= high, or all None
    confidence  of the two-sided interval; None where there is no figure
    method   how the interval was made
    reason   why there is no figure; None where there is one
    champion  the champion's own figure, where value is by how much the candidate's is above it
    """

    metric: Annotated[str, Field(min_length=1)]
    subject: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    method: str = ""
    samples: str = ""
    reason: str | None = None
    champion: float | None = None

    @model_validator(mode="after")
    def _figure_or_reason(self) -> Self:
        figures = (self.value, self.low, self.high, self.confidence)
        if all(figure is None for figure in figures):
            if self.champion is not None:
                raise ValueError(f"{self.metric} has a champion's figure and none of the candidate's")
            if not self.reason:
                raise ValueError(f"{self.metric} has neither a figure nor a reason")
            return self
        if self.value is None or self.low is None or self.high is None or self.confidence is None:
            raise ValueError(f"{self.metric} has a figure without its interval")
        if self.reason is not None:
            raise ValueError(f"{self.metric} has both a figure and a reason for none")
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"{self.metric}: expected low <= value <= high, found {self.low}, {self.value}, {self.high}"
            )
        return self

    @property
    def measured(self) -> bool:
        return self.value is not None


def not_measured(metric: str, reason: str, subject: str = "") -> Measurement:
    """A measurement that could not be made, and why."""
    return Measurement(metric=metric, subject=subject, reason=reason)


class Severity(StrEnum):
    """What a violated limit does: stops the promotion, or only says so."""

    BLOCK = "block"
    WARN = "warn"


class Limit(Record):
    """A bound on a metric, judged at the unfavourable end of its interval: max or min, not both."""

    max: float | None = None
    min: float | None = None
    severity: Severity = Severity.BLOCK

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.max is None) == (self.min is None):
            raise ValueError("a limit has either max or min")
        return self

    def __str__(self) -> str:
        return f"<= {self.max:g}" if self.max is not None else f">= {self.min:g}"


class Status(StrEnum):
    """How a limit fared."""

    MET = "met"
    VIOLATED = "violated"
    NOT_MEASURED = "not measured"
    WAIVED = "waived"


class WaiverNote(Record):
    """Why a violated limit was let pass: who answers for it, until when."""

    owner: str
    reason: str
    expires: str


class Finding(Record):
    """One limit held against one measurement."""

    check: str
    measurement: Measurement
    limit: Limit
    status: Status
    waiver: WaiverNote | None = None

    @model_validator(mode="after")
    def _status_follows(self) -> Self:
        judged = judged_status(self.measurement, self.limit)
        expected = Status.WAIVED if self.waiver and judged is Status.VIOLATED else judged
        if self.status is not expected:
            raise ValueError(f"{self.measurement.metric}: status is {self.status}, the figures say {expected}")
        return self

    @property
    def bound(self) -> str:
        """The limit in signs, for instance ">= 0.8"; of a difference also the champion's own figure."""
        champion = self.measurement.champion
        return str(self.limit) if champion is None else f"{self.limit} from the champion's {champion:.4g}"

    @property
    def uncertain(self) -> bool:
        """Violated only at the unfavourable end: the estimate itself meets the limit."""
        if self.status is not Status.VIOLATED or self.measurement.value is None:
            return False
        value = self.measurement.value
        return value <= self.limit.max if self.limit.max is not None else value >= (self.limit.min or 0.0)


def judged_status(measurement: Measurement, limit: Limit) -> Status:
    """Met only where the whole interval is on the good side; no figure is never met."""
    if measurement.low is None or measurement.high is None:
        return Status.NOT_MEASURED
    met = limit.max is not None and measurement.high <= limit.max
    met = met or (limit.min is not None and measurement.low >= limit.min)
    return Status.MET if met else Status.VIOLATED


def judge(check: str, measurement: Measurement, limit: Limit, waiver: WaiverNote | None = None) -> Finding:
    """The finding of one limit on one measurement. A waiver excuses a violation, not an absence."""
    status = judged_status(measurement, limit)
    if waiver and status is Status.VIOLATED:
        return Finding(check=check, measurement=measurement, limit=limit, status=Status.WAIVED, waiver=waiver)
    return Finding(check=check, measurement=measurement, limit=limit, status=status)


class Verdict(StrEnum):
    """What the gate decides."""

    APPROVED = "approved"
    BLOCKED = "blocked"
    UNDECIDED = "undecided"

    @property
    def exit_code(self) -> int:
        return {"approved": APPROVED, "blocked": BLOCKED, "undecided": UndecidedError.exit_code}[self.value]


def verdict(findings: Iterable[Finding], controls: Iterable["Control"] = ()) -> Verdict:
    """Approved only if every blocking limit is met or waived, every control held, and there is a finding.

    A violated blocking limit blocks; else a missing figure or a failed control leaves it undecided.
    """
    every = list(findings)
    binding = [finding for finding in every if finding.limit.severity is Severity.BLOCK]
    sound = all(control.held for control in controls)
    if sound and every and all(finding.status in (Status.MET, Status.WAIVED) for finding in binding):
        return Verdict.APPROVED
    if sound and any(finding.status is Status.VIOLATED for finding in binding):
        return Verdict.BLOCKED
    return Verdict.UNDECIDED


class Control(Record):
    """A test of the audit itself: where it fails, no figure of the audit decides anything."""

    name: str
    held: bool
    detail: str


class RuleTrial(Record):
    """One rule of aggregation: what it keeps under hostile clients, and what it costs without them.

    clean   accuracy where nobody is hostile
    tax     robustness_tax
    drop    byzantine_drop, its subject the worst attack
    passes  whether both meet their limits
    """

    rule: str
    clean: Rate
    tax: Measurement
    drop: Measurement
    passes: bool


class RuleTable(Record):
    """Which rules would pass, and what they cost, where so many of the clients are hostile; the recipe's own first.

    drop_limit, tax_limit  what the drop and the tax may be; None: the tax may be any
    """

    kind: Literal["rules"] = "rules"
    clients: Count
    byzantine: Count
    drop_limit: float
    tax_limit: float | None = None
    rules: Annotated[tuple[RuleTrial, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _passes_follow(self) -> Self:
        for trial in self.rules:
            if trial.passes is not rule_passes(trial.drop, trial.tax, self.drop_limit, self.tax_limit):
                raise ValueError(f"{trial.rule}: passes is {trial.passes}, the figures say otherwise")
        return self


def rule_passes(drop: Measurement, tax: Measurement, drop_limit: float, tax_limit: float | None) -> bool:
    """Whether both figures meet their limits at the unfavourable end; a tax without a limit may be any."""
    borne = judged_status(drop, Limit(max=drop_limit)) is Status.MET
    return borne and (tax_limit is None or judged_status(tax, Limit(max=tax_limit)) is Status.MET)


Exhibit = Annotated[
    Roc | Histogram | LawPlot | VulnerableRows | GradientScatter | ByzantinePlot | RuleTable,
    Field(discriminator="kind"),
]


class Remedy(Record):
    """What would help, and what that rests on."""

    action: str
    basis: str


FORGOTTEN = "the check gave neither a figure nor a reason for none: please report it"


class CheckResult(Record):
    """What one check brings to the report.

    left_out  metrics that are neither measured nor missing, by the policy's own leave
    """

    measurements: tuple[Measurement, ...]
    left_out: tuple[str, ...] = ()
    exhibits: tuple[Exhibit, ...] = ()
    controls: tuple[Control, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...] = ()

    def complete(self, metrics: Iterable[str]) -> Self:
        """The result with a reason for each of the metrics that has neither a measurement nor leave to be left out."""
        known = {*self.left_out, *(measurement.metric for measurement in self.measurements)}
        forgotten = [not_measured(metric, FORGOTTEN) for metric in metrics if metric not in known]
        return self.model_copy(update={"measurements": (*self.measurements, *forgotten)})
