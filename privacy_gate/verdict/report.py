"""The report: one JSON record of the candidate, the measurements and the verdict. Other formats are views of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from privacy_gate.documents import Record
from privacy_gate.dossier.candidate import Claim
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.verdict.judgement import CheckResult, Control, Finding, Severity, Status, Verdict, verdict


class CandidateRecord(Record):
    """Which model files were judged. Names come from the registry and are untrusted text."""

    uri: str
    name: str
    version: str
    alias: str | None
    run_id: str | None
    model_id: str | None
    digest: str


class PolicyRecord(Record):
    """Which policy judged. Its sha256 and the time were recorded before anything was measured.

    release, released  what an attacker sees: the policy's settings, and in words; None in older reports, whose figures
                       are of an attacker who sees all confidences
    """

    name: str
    version: int
    source: str
    sha256: str
    recorded: str
    release_context: str
    confidence: float
    alias: str | None
    release: Mapping[str, object] | None = None
    released: str | None = None


class ChampionRecord(Record):
    """The version that the candidate was compared with: the one at the alias when the candidate was pulled.

    version  from the registry, untrusted text; None if the alias named no version
    digest   sha256 of its files; None if they were not read
    reason   why it could not be compared; None if it could
    """

    alias: str
    version: str | None
    digest: str | None
    reason: str | None = None


class DataRecord(Record):
    """The audit data: sizes and digest, never a training record."""

    sha256: str
    members: int
    holdout: int
    population: int
    classes: int
    fewest_members_per_class: int
    median_members_per_class: float
    groups: Mapping[str, int] | None = None
    clients: int | None = None


class CheckRecord(Record):
    """One check of the policy and its result."""

    check: str
    settings: Mapping[str, object]
    result: CheckResult


class Report(Record):
    """Everything a reader needs to agree or disagree with the verdict.

    A report that contradicts itself cannot be loaded: the verdict must follow from the findings and controls, and
    every finding must be based on a measurement of its check.
    """

    schema_version: Literal[1] = 1
    created: str
    tool: str
    versions: Mapping[str, str]
    candidate: CandidateRecord
    policy: PolicyRecord
    recipe: Recipe
    data: DataRecord
    checks: Annotated[tuple[CheckRecord, ...], Field(min_length=1)]
    findings: tuple[Finding, ...]
    verdict: Verdict
    exit_code: int
    threat_model: tuple[str, ...]
    not_tested: tuple[str, ...]
    notes: tuple[str, ...] = ()
    claim: Claim | None = None
    champion: ChampionRecord | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Somebody could edit the verdict in the file: promotion acts only on one that the findings confirm.
        expected = verdict(self.findings, self.controls)
        if self.verdict is not expected:
            raise ValueError(f"verdict is {self.verdict}, but its findings and controls mean {expected}")
        if self.exit_code != self.verdict.exit_code:
            raise ValueError(f"exit_code is {self.exit_code}, but {self.verdict} means {self.verdict.exit_code}")
        # Compared as JSON text: a finding must repeat its measurement exactly, not only the metric's name.
        measured = {(check.check, m.model_dump_json()) for check in self.checks for m in check.result.measurements}
        for finding in self.findings:
            if (finding.check, finding.measurement.model_dump_json()) not in measured:
                metric = finding.measurement.metric
                raise ValueError(f"finding on {metric} is based on no measurement of {finding.check}")
        self._refuse_unpinned()
        return self

    def _refuse_unpinned(self) -> None:
        """Refuses comparisons with a champion that the report does not identify.

        Promotion checks that the champion is still the one that the candidate was compared with.
        """
        if self.champion is not None and self.champion.alias != self.policy.alias:
            raise ValueError(
                f"the champion is at alias {self.champion.alias}, but the policy's alias is {self.policy.alias}"
            )
        # The digest proves which files were compared; a version number alone could name others by now.
        pinned = self.champion is not None and self.champion.digest is not None
        for finding in self.findings:
            if finding.measurement.champion is not None and not pinned:
                metric = finding.measurement.metric
                raise ValueError(f"finding on {metric} compares with a champion that the report does not identify")

    @property
    def controls(self) -> tuple[Control, ...]:
        return tuple(control for check in self.checks for control in check.result.controls)

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is not approved, most serious first, one line each; empty if it is approved."""
        failed = [f"control failed: {control.name}: {control.detail}" for control in self.controls if not control.held]
        binding = [finding for finding in self.findings if finding.limit.severity is Severity.BLOCK]
        # Findings whose estimate is beyond the limit come before those where only the interval is.
        violated = sorted(
            (finding for finding in binding if finding.status is Status.VIOLATED), key=lambda finding: finding.uncertain
        )
        missing = [finding for finding in binding if finding.status is Status.NOT_MEASURED]
        return failed + [explain(finding) for finding in violated + missing]


def explain(finding: Finding) -> str:
    """One line with the measurement, its limit and the outcome.

    For instance: "membership lira: tpr_at_0.01_fpr 0.31 [0.25, 0.37], limit <= 0.05: violated".
    """
    measurement = finding.measurement
    name = " ".join(part for part in (finding.check, measurement.subject) if part) + f": {measurement.metric}"
    if not measurement.measured:
        return f"{name} not measured: {measurement.reason}; limit {finding.bound}"
    figure = f"{measurement.value:.4g} [{measurement.low:.4g}, {measurement.high:.4g}]"
    tail = " (the estimate meets the limit, its interval does not: audit more examples)" if finding.uncertain else ""
    return f"{name} {figure}, limit {finding.bound}: {finding.status}{tail}"


def parse_report(text: str, source: str) -> Report:
    """The report in `text`. Raises ConfigurationError if it is not a report or contradicts itself."""
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        # One fault is enough to fix at a time; pydantic lists every alternative that did not match.
        first = error.errors()[0]
        field = ": ".join(filter(None, ("not a valid report", ".".join(str(part) for part in first["loc"]))))
        fault = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{source}: {field}: {fault}; name a report.json, or run the audit again") from error


def read_report(path: Path) -> Report:
    """The report in the file. Raises ConfigurationError if it cannot be read, is not a report or contradicts itself."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name a report.json that `audit` wrote") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text; name a report.json that `audit` wrote") from error
    return parse_report(text, str(path))
