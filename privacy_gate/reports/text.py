"""A few lines for a terminal: the verdict, its reasons, the next step, and the topics that were not tested."""

from collections import Counter

from privacy_gate.reports.details import provenance
from privacy_gate.reports.story import next_step, notes, reasons, warnings, why
from privacy_gate.reports.words import plain
from privacy_gate.verdict.judgement import Status
from privacy_gate.verdict.report import Report

TALLIED = {
    Status.MET: "met",
    Status.VIOLATED: "violated",
    Status.NOT_MEASURED: "not measured",
    Status.WAIVED: "violated and waived",
}


def render(report: Report) -> str:
    """The report as lines of plain text; the last line ends with a line break."""
    candidate, policy = report.candidate, report.policy
    lines = [
        f"{report.verdict.upper()}: {plain(candidate.name)}, version {plain(candidate.version)}"
        f" (sha256 {plain(candidate.digest)[:12]}), by policy {plain(policy.name)} version {policy.version}",
        why(report),
        *(f"  - {reason}" for reason in reasons(report)),
        *(f"  - warning: {reason}" for reason in warnings(report)),
        f"next: {next_step(report)}",
        f"limits: {_tally(report)}",
        f"backbone: {provenance(report)}",
        *(f"note: {plain(note)}" for note in notes(report)),
    ]
    # An approval says nothing about these, so they are never left out.
    if report.not_tested:
        lines.append(f"not tested: {'; '.join(plain(line) for line in report.not_tested)}")
    return "\n".join(lines) + "\n"


def _tally(report: Report) -> str:
    count = Counter(finding.status for finding in report.findings)
    return ", ".join(f"{count[status]} {TALLIED[status]}" for status in Status if count[status]) or "none"
