"""What every view of a report tells first: why the verdict is what it is, and what would help."""

from privacy_gate.reports.words import bound, capital, metric, percent, plain, shown
from privacy_gate.verdict.judgement import Finding, Remedy, Severity, Status, Verdict
from privacy_gate.verdict.report import Report


def binding(report: Report) -> list[Finding]:
    """The findings that decide."""
    return [finding for finding in report.findings if finding.limit.severity is Severity.BLOCK]


def excess(finding: Finding) -> float:
    """How far the estimate lies beyond its limit, in limits; below 0 where it meets it.

    Not measured is -inf: it comes after everything that was.
    """
    value, limit = finding.measurement.value, finding.limit
    if value is None:
        return float("-inf")
    edge = limit.max if limit.max is not None else limit.min or 0.0
    beyond = value - edge if limit.max is not None else edge - value
    return beyond / abs(edge) if edge else beyond * 1e9


def unmet(report: Report) -> list[Finding]:
    """The blocking findings that stand against approval: violated before not measured, gravest first."""
    against = [finding for finding in binding(report) if finding.status in (Status.VIOLATED, Status.NOT_MEASURED)]
    return sorted(against, key=excess, reverse=True)


def gravity(finding: Finding) -> tuple[int, float]:
    """Sorts findings, gravest first: what blocks, what is missing, warnings, waivers, limits met."""
    warning = 2 * (finding.limit.severity is Severity.WARN)
    rank = {Status.VIOLATED: warning, Status.NOT_MEASURED: 1 + warning, Status.WAIVED: 4, Status.MET: 5}
    return rank[finding.status], -excess(finding)


def grouped(report: Report) -> list[list[Finding]]:
    """The findings of one limit together, gravest first in and between the groups."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in sorted(report.findings, key=gravity):
        key = (finding.check, finding.measurement.metric, str(finding.limit), finding.limit.severity)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def sentence(finding: Finding) -> str:
    """One finding in words.

    For instance "members identified at a false positive rate of 1 % (lira): 31.0 % [25.1 %, 37.2 %], limit ≤ 5 %".
    """
    measurement = finding.measurement
    subject = f" ({plain(measurement.subject)})" if measurement.subject else ""
    head = metric(measurement.metric).title + subject
    figure = shown(measurement, finding.limit)
    if figure is None:
        return f"{head}: not measured ({plain(measurement.reason)}), limit {bound(finding)}"
    tail = "; the estimate meets the limit, its interval does not: more audited examples would tell"
    return f"{head}: {figure}, limit {bound(finding)}" + (tail if finding.uncertain else "")


def reasons(report: Report) -> list[str]:
    """Why the verdict is not approval, gravest first, in words; empty when approved."""
    failed = [
        f"control failed: {plain(control.name)}: {plain(control.detail)}"
        for control in report.controls
        if not control.held
    ]
    if report.verdict is Verdict.APPROVED:
        return []
    return failed + [sentence(finding) for finding in unmet(report)] or [
        "no limit of the policy was held against a figure"
    ]


def warnings(report: Report) -> list[str]:
    """The limits that only warn and are not met, gravest first, in words."""
    found = [finding for finding in sorted(report.findings, key=gravity) if finding.limit.severity is Severity.WARN]
    return [sentence(finding) for finding in found if finding.status in (Status.VIOLATED, Status.NOT_MEASURED)]


def why(report: Report) -> str:
    """The verdict's ground in one sentence."""
    against, every = unmet(report), len(binding(report))
    if report.verdict is Verdict.APPROVED:
        return _why_approved(report)
    first = reasons(report)[0]
    if report.verdict is Verdict.BLOCKED:
        violated = sum(finding.status is Status.VIOLATED for finding in against)
        verb = "violate their limit" if violated > 1 else "violates its limit"
        return f"{violated} of {every} blocking findings {verb}; the gravest: {first}."
    if any(not control.held for control in report.controls):
        return f"A control of the audit itself failed, so its figures decide nothing: {first.partition(': ')[2]}."
    if not against:
        return f"Nothing was decided: {first}."
    return (
        f"{len(against)} of {every} blocking findings could not be measured, and what was not measured is never a "
        f"limit met: {first}."
    )


def _why_approved(report: Report) -> str:
    decisive = binding(report)
    warned = sum(finding.status in (Status.VIOLATED, Status.NOT_MEASURED) for finding in report.findings)
    waived = sum(finding.status is Status.WAIVED for finding in decisive)
    if not decisive:
        return f"This policy has no blocking limit; {warned} of {len(report.findings)} warnings apply."
    level = percent(report.policy.confidence)
    parts = [
        f"{len(decisive) - waived} of {len(decisive)} blocking findings meet their limit at the unfavourable end of "
        f"their {level} interval"
    ]
    parts += [f"{waived} violated and waived by a named owner"] if waived else []
    parts += [f"{warned} {'warnings apply' if warned > 1 else 'warning applies'}"] if warned else []
    return "; ".join(parts) + "."


def remedies(report: Report) -> list[Remedy]:
    """What would help, most useful first: remedies of checks that stand against approval, then of the others."""
    if report.verdict is Verdict.APPROVED:
        return []
    blamed = {finding.check for finding in unmet(report)}
    ordered = sorted(report.checks, key=lambda check: check.check not in blamed)
    return [remedy for check in ordered for remedy in check.result.remedies]


def next_step(report: Report) -> str:
    """The most useful thing to do now, in one sentence."""
    alias = plain(report.policy.alias) if report.policy.alias else ""
    if report.verdict is Verdict.APPROVED:
        return (
            f"Promotion may move the alias {alias} to this version." if alias else "The policy names no alias to move."
        )
    if any(not control.held for control in report.controls):
        return (
            "Find out why the control failed: attach a dossier that describes this model and this data, then audit "
            "again."
        )
    missing = [finding for finding in unmet(report) if finding.status is Status.NOT_MEASURED]
    if report.verdict is Verdict.UNDECIDED and missing:
        return f"Give the audit what it lacked ({plain(missing[0].measurement.reason)}), then audit again."
    known = remedies(report)
    if known:
        return f"{capital(plain(known[0].action))}."
    return "No remedy was measured for these limits."


def notes(report: Report) -> list[str]:
    """What the report and its checks remark."""
    return [*report.notes, *(note for check in report.checks for note in check.result.notes)]
