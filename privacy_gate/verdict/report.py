"""The report: one JSON record of what was judged, measured and decided. Every other format is a view of it."""

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
    """Which bytes were judged. Names come from the registry: untrusted text."""

    uri: str
    name: str
    version: str
    alias: str | None
    run_id: str | None
    model_id: str | None
    digest: str


class PolicyRecord(Record):
    """Which policy judged; its sha256 and the time were recorded before anything was measured."""

    name: str
    version: int
    source: str
    sha256: str
    recorded: str
    release_context: str
    confidence: float
    alias: str | None


class ChampionRecord(Record):
    """Which version the candidate was compared with: what stood at the alias when the candidate was pulled.

    version  as the registry says, untrusted text; None where nothing stood there
    digest   of its bytes; None where they were not read
    reason   why it could not be compared; None where it could
    """

    alias: str
    version: str | None
    digest: str | None
    reason: str | None = None


class DataRecord(Record):
    """What the audit looked at: sizes and digest, never a training record."""

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
    """One check of the policy and what it brought."""

    check: str
    settings: Mapping[str, object]
    result: CheckResult


class Report(Record):
    """Everything a reader needs to agree or disagree with the verdict.

    Refuses to load if it contradicts itself: the verdict must follow from findings and controls,
    and every finding must rest on a measurement of its check.
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
        expected = verdict(self.findings, self.controls)
        if self.verdict is not expected:
            raise ValueError(f"verdict is {self.verdict}, its findings say {expected}")
        if self.exit_code != self.verdict.exit_code:
            raise ValueError(f"exit_code is {self.exit_code}, verdict {self.verdict} means {self.verdict.exit_code}")
        measured = {(check.check, m.model_dump_json()) for check in self.checks for m in check.result.measurements}
        for finding in self.findings:
            if (finding.check, finding.measurement.model_dump_json()) not in measured:
                raise ValueError(f"finding on {finding.measurement.metric} rests on no measurement of {finding.check}")
        self._refuse_unpinned()
        return self

    def _refuse_unpinned(self) -> None:
        """Promotion looks whether the champion is still the one that was compared with: it must be named."""
        if self.champion is not None and self.champion.alias != self.policy.alias:
            raise ValueError(
                f"the champion is that of alias {self.champion.alias}, the policy's is {self.policy.alias}"
            )
        pinned = self.champion is not None and self.champion.digest is not None
        for finding in self.findings:
            if finding.measurement.champion is not None and not pinned:
                raise ValueError(f"finding on {finding.measurement.metric} compares with no champion that is named")

    @property
    def controls(self) -> tuple[Control, ...]:
        return tuple(control for check in self.checks for control in check.result.controls)

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is not approval, gravest first, one line each; empty when approved."""
        failed = [f"control failed: {control.name}: {control.detail}" for control in self.controls if not control.held]
        binding = [finding for finding in self.findings if finding.limit.severity is Severity.BLOCK]
        violated = sorted(
            (finding for finding in binding if finding.status is Status.VIOLATED), key=lambda finding: finding.uncertain
        )
        missing = [finding for finding in binding if finding.status is Status.NOT_MEASURED]
        return failed + [explain(finding) for finding in violated + missing]


def explain(finding: Finding) -> str:
    """One line that says what was found against which limit.

    For instance: "membership lira: tpr_at_0.01_fpr .31 [.25, .37], limit <= .05: violated".
    """
    measurement = finding.measurement
    what = " ".join(part for part in (finding.check, measurement.subject) if part) + f": {measurement.metric}"
    if not measurement.measured:
        return f"{what} not measured: {measurement.reason}; limit {finding.bound}"
    figure = f"{measurement.value:.4g} [{measurement.low:.4g}, {measurement.high:.4g}]"
    tail = (
        " (the estimate meets it, its interval does not: more audited examples would tell)" if finding.uncertain else ""
    )
    return f"{what} {figure}, limit {finding.bound}: {finding.status}{tail}"


def parse_report(text: str, source: str) -> Report:
    """The report in `text`. Raises ConfigurationError if it is no report or contradicts itself."""
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(filter(None, ("not a sound report", ".".join(str(part) for part in first["loc"]))))
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{source}: {where}: {said}; name a report.json, or run the audit again") from error


def read_report(path: Path) -> Report:
    """The report in the file. Raises ConfigurationError if it cannot be read, is no report or contradicts itself."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name a report.json that audit wrote") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text; name a report.json that audit wrote") from error
    return parse_report(text, str(path))
