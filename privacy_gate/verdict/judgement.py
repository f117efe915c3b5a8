"""Measurements, limits, findings, and the judgement that combines them into a verdict.

Pure functions that fail closed: a limit is only met if a measurement shows it.
"""

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
    """A figure with its confidence interval, or the reason why there is none.

    metric            its name, for instance tpr_at_0.01_fpr
    subject           the attack, split or group that was measured; empty if the metric needs none
    value, low, high  low <= value <= high, or all None
    confidence        level of the two-sided interval; None without a figure
    method            how the interval was computed
    samples           the numbers of examples, models or sizes that it rests on
    reason            why there is no figure; None with a figure
    champion          the champion's figure, if value is the candidate's figure minus the champion's
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
        # All or none: half a measurement could pass a limit by the end that it has.
        figures = (self.value, self.low, self.high, self.confidence)
        if all(figure is None for figure in figures):
            if self.champion is not None:
                raise ValueError(f"{self.metric} has a figure of the champion but none of the candidate")
            if not self.reason:
                raise ValueError(f"{self.metric} has neither a figure nor a reason")
            return self
        if self.value is None or self.low is None or self.high is None or self.confidence is None:
            raise ValueError(f"{self.metric} has a figure without its interval")
        if self.reason is not None:
            raise ValueError(f"{self.metric} has both a figure and a reason why there is none")
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"{self.metric}: expected low <= value <= high, found {self.low}, {self.value}, {self.high}"
            )
        return self

    @property
    def measured(self) -> bool:
        return self.value is not None


def not_measured(metric: str, reason: str, subject: str = "") -> Measurement:
    """A measurement without a figure, and the reason why it has none."""
    return Measurement(metric=metric, subject=subject, reason=reason)


class Severity(StrEnum):
    """The effect of a violated limit: it blocks the promotion, or it only warns."""

    BLOCK = "block"
    WARN = "warn"


class Limit(Record):
    """A bound on a metric, either max or min, that the whole confidence interval must meet."""

    max: float | None = None
    min: float | None = None
    severity: Severity = Severity.BLOCK

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.max is None) == (self.min is None):
            raise ValueError("a limit needs exactly one of max and min")
        return self

    def __str__(self) -> str:
        return f"<= {self.max:g}" if self.max is not None else f">= {self.min:g}"


class Status(StrEnum):
    """Outcome of one limit."""

    MET = "met"
    VIOLATED = "violated"
    NOT_MEASURED = "not measured"
    WAIVED = "waived"


class WaiverNote(Record):
    """Who accepted a violated limit, why, and until when."""

    owner: str
    reason: str
    expires: str


class Finding(Record):
    """One measurement compared with one limit."""

    check: str
    measurement: Measurement
    limit: Limit
    status: Status
    waiver: WaiverNote | None = None

    @model_validator(mode="after")
    def _status_follows(self) -> Self:
        # Reports are read from files: a status that its figures deny must not load.
        judged = judged_status(self.measurement, self.limit)
        expected = Status.WAIVED if self.waiver and judged is Status.VIOLATED else judged
        if self.status is not expected:
            raise ValueError(f"{self.measurement.metric}: status is {self.status}, but its figures mean {expected}")
        return self

    @property
    def bound(self) -> str:
        """The limit as text, for instance ">= 0.8"; a limit on a difference also names the champion's figure."""
        champion = self.measurement.champion
        return str(self.limit) if champion is None else f"{self.limit} from the champion's {champion:.4g}"

    @property
    def uncertain(self) -> bool:
        """Whether the estimate meets the limit but its interval does not."""
        if self.status is not Status.VIOLATED or self.measurement.value is None:
            return False
        # More examples make the interval narrower, which can turn this violation into a limit met.
        value = self.measurement.value
        return value <= self.limit.max if self.limit.max is not None else value >= (self.limit.min or 0.0)


def judged_status(measurement: Measurement, limit: Limit) -> Status:
    """MET only if the whole interval meets the limit; a missing figure never meets it."""
    if measurement.low is None or measurement.high is None:
        return Status.NOT_MEASURED
    # Written as conditions to approve, so that NaN, for which every comparison is False, never meets a limit.
    met = limit.max is not None and measurement.high <= limit.max
    met = met or (limit.min is not None and measurement.low >= limit.min)
    return Status.MET if met else Status.VIOLATED


def judge(check: str, measurement: Measurement, limit: Limit, waiver: WaiverNote | None = None) -> Finding:
    """The finding for one limit and one measurement. A waiver excuses a violation, never a missing measurement."""
    status = judged_status(measurement, limit)
    # A waiver accepts a known risk. A missing figure is an unknown one, so it cannot be waived.
    if waiver and status is Status.VIOLATED:
        return Finding(check=check, measurement=measurement, limit=limit, status=Status.WAIVED, waiver=waiver)
    return Finding(check=check, measurement=measurement, limit=limit, status=status)


class Verdict(StrEnum):
    """The decision of the gate."""

    APPROVED = "approved"
    BLOCKED = "blocked"
    UNDECIDED = "undecided"

    @property
    def exit_code(self) -> int:
        return {"approved": APPROVED, "blocked": BLOCKED, "undecided": UndecidedError.exit_code}[self.value]


def verdict(findings: Iterable[Finding], controls: Iterable["Control"] = ()) -> Verdict:
    """Approved only if every control held, there is a finding, and every blocking limit is met or waived.

    Blocked if every control held and a blocking limit is violated. Undecided in every other case: a control failed,
    a figure is missing, or there is no finding.
    """
    every = list(findings)
    binding = [finding for finding in every if finding.limit.severity is Severity.BLOCK]
    # If a control failed, the figures cannot be trusted, neither to approve nor to block.
    sound = all(control.held for control in controls)
    if sound and every and all(finding.status in (Status.MET, Status.WAIVED) for finding in binding):
        return Verdict.APPROVED
    if sound and any(finding.status is Status.VIOLATED for finding in binding):
        return Verdict.BLOCKED
    return Verdict.UNDECIDED


class Control(Record):
    """A test of the audit itself. If it fails, the figures of the audit decide nothing."""

    name: str
    held: bool
    detail: str


class RuleTrial(Record):
    """One aggregation rule: the accuracy it loses to hostile clients, and the accuracy it costs without them.

    clean   accuracy without hostile clients
    tax     robustness_tax
    drop    byzantine_drop; its subject is the worst attack
    passes  whether drop and tax meet their limits
    """

    rule: str
    clean: Rate
    tax: Measurement
    drop: Measurement
    passes: bool


class RuleTable(Record):
    """Which rules would pass with `byzantine` hostile clients out of `clients`; the recipe's own rule comes first.

    drop_limit  the largest byzantine_drop that passes
    tax_limit   the largest robustness_tax that passes; None: no limit
    """

    kind: Literal["rules"] = "rules"
    clients: Count
    byzantine: Count
    drop_limit: float
    tax_limit: float | None = None
    rules: Annotated[tuple[RuleTrial, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _passes_follow(self) -> Self:
        # As in Finding: an outcome that the figures deny must not load from a file.
        for trial in self.rules:
            if trial.passes is not rule_passes(trial.drop, trial.tax, self.drop_limit, self.tax_limit):
                raise ValueError(f"{trial.rule}: passes is {trial.passes}, but its figures mean the opposite")
        return self


def rule_passes(drop: Measurement, tax: Measurement, drop_limit: float, tax_limit: float | None) -> bool:
    """Whether the whole intervals of both figures meet their limits; without a limit every tax passes."""
    drop_met = judged_status(drop, Limit(max=drop_limit)) is Status.MET
    return drop_met and (tax_limit is None or judged_status(tax, Limit(max=tax_limit)) is Status.MET)


Exhibit = Annotated[
    Roc | Histogram | LawPlot | VulnerableRows | GradientScatter | ByzantinePlot | RuleTable,
    Field(discriminator="kind"),
]


class Remedy(Record):
    """A change that would help, and the measurement or source that says so."""

    action: str
    basis: str


FORGOTTEN = "the check returned neither a figure nor a reason why there is none: please report this fault"


class CheckResult(Record):
    """The part of the report that one check produces.

    left_out  metrics without a measurement that the policy allows to be absent (`required: false` or
              `without_champion: pass`)
    """

    measurements: tuple[Measurement, ...]
    left_out: tuple[str, ...] = ()
    exhibits: tuple[Exhibit, ...] = ()
    controls: tuple[Control, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...] = ()

    def complete(self, metrics: Iterable[str]) -> Self:
        """The result with a "not measured" entry for each metric that is neither measured nor left out."""
        # Without these entries a limit that a check forgot would silently disappear from the verdict.
        known = {*self.left_out, *(measurement.metric for measurement in self.measurements)}
        forgotten = [not_measured(metric, FORGOTTEN) for metric in metrics if metric not in known]
        return self.model_copy(update={"measurements": (*self.measurements, *forgotten)})
