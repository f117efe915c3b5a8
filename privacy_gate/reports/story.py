"""The first part of every report: the verdict, its reasons, and the remedies."""

from privacy_gate.reports.words import bound, capital, metric, percent, plain, shown
from privacy_gate.verdict.judgement import Finding, Remedy, Severity, Status, Verdict
from privacy_gate.verdict.report import Report


def binding(report: Report) -> list[Finding]:
    """The findings of blocking limits, which decide the verdict."""
    return [finding for finding in report.findings if finding.limit.severity is Severity.BLOCK]


def excess(finding: Finding) -> float:
    """How far the estimate is beyond its limit, relative to the limit; negative if the estimate meets it.

    A missing measurement is -inf, so it is sorted behind all others.
    """
    value, limit = finding.measurement.value, finding.limit
    if value is None:
        return float("-inf")
    edge = limit.max if limit.max is not None else limit.min or 0.0
    beyond = value - edge if limit.max is not None else edge - value
    # A limit of 0 has no size to compare with: any excess beyond it counts as very large.
    return beyond / abs(edge) if edge else beyond * 1e9


def unmet(report: Report) -> list[Finding]:
    """The blocking findings that prevent approval: violated before not measured, most serious first."""
    against = [finding for finding in binding(report) if finding.status in (Status.VIOLATED, Status.NOT_MEASURED)]
    return sorted(against, key=excess, reverse=True)


def gravity(finding: Finding) -> tuple[int, float]:
    """Sort key, most serious first: violated, not measured, the same for warnings, then waivers and limits met."""
    # Ranks 0 and 1 are blocking limits, 2 and 3 the same outcomes of warning limits.
    warning = 2 * (finding.limit.severity is Severity.WARN)
    rank = {Status.VIOLATED: warning, Status.NOT_MEASURED: 1 + warning, Status.WAIVED: 4, Status.MET: 5}
    return rank[finding.status], -excess(finding)


def grouped(report: Report) -> list[list[Finding]]:
    """The findings grouped by limit; groups, and findings within them, are sorted by `gravity`."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in sorted(report.findings, key=gravity):
        # The attacks of a check share a limit on a metric, so they share a group and a scale.
        key = (finding.check, finding.measurement.metric, str(finding.limit), finding.limit.severity)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def sentence(finding: Finding) -> str:
    """One finding as a sentence.

    For instance "members identified at a false positive rate of 1 % (lira): 31.0 % [25.1 %, 37.2 %], limit ≤ 5 %".
    """
    measurement = finding.measurement
    subject = f" ({plain(measurement.subject)})" if measurement.subject else ""
    head = metric(measurement.metric).title + subject
    figure = shown(measurement, finding.limit)
    if figure is None:
        return f"{head}: not measured ({plain(measurement.reason)}), limit {bound(finding)}"
    tail = "; the estimate meets the limit, its interval does not: audit more examples"
    return f"{head}: {figure}, limit {bound(finding)}" + (tail if finding.uncertain else "")


def reasons(report: Report) -> list[str]:
    """Why the verdict is not approval, most serious first; empty if approved."""
    # Failed controls come first: they make every figure below them worthless.
    failed = [
        f"control failed: {plain(control.name)}: {plain(control.detail)}"
        for control in report.controls
        if not control.held
    ]
    if report.verdict is Verdict.APPROVED:
        return []
    return failed + [sentence(finding) for finding in unmet(report)] or ["no limit of the policy was judged"]


def warnings(report: Report) -> list[str]:
    """The warning limits that are not met, most serious first."""
    warning = [finding for finding in sorted(report.findings, key=gravity) if finding.limit.severity is Severity.WARN]
    return [sentence(finding) for finding in warning if finding.status in (Status.VIOLATED, Status.NOT_MEASURED)]


def why(report: Report) -> str:
    """The reason for the verdict in one sentence."""
    against, every = unmet(report), len(binding(report))  # violated ones come first
    if report.verdict is Verdict.APPROVED:
        return _why_approved(report)
    first = reasons(report)[0]
    if report.verdict is Verdict.BLOCKED:
        violated = sum(finding.status is Status.VIOLATED for finding in against)
        verb = "violate their limit" if violated > 1 else "violates its limit"
        return f"{violated} of {every} blocking findings {verb}; the most serious: {first}."
    if any(not control.held for control in report.controls):
        return f"A control of the audit itself failed, so no figure of the audit counts: {first.partition(': ')[2]}."
    # Undecided without an unmet limit: the policy had nothing to judge, which is no approval.
    if not against:
        return f"There is no decision: {first}."
    return f"{len(against)} of {every} blocking findings could not be measured, so their limits are not met: {first}."


def _why_approved(report: Report) -> str:
    # A report-only policy has no blocking limit, so its approval needs another sentence.
    decisive = binding(report)
    warned = sum(finding.status in (Status.VIOLATED, Status.NOT_MEASURED) for finding in report.findings)
    waived = sum(finding.status is Status.WAIVED for finding in decisive)
    if not decisive:
        return f"The policy has no blocking limit; {warned} of its {len(report.findings)} warning limits are not met."
    level = percent(report.policy.confidence)
    parts = [
        f"{len(decisive) - waived} of {len(decisive)} blocking findings meet their limit with their whole {level} "
        "confidence interval"
    ]
    parts += [f"{waived} violated, but waived by a named owner"] if waived else []
    parts += [f"{warned} warning {'limits are' if warned > 1 else 'limit is'} not met"] if warned else []
    return "; ".join(parts) + "."


def remedies(report: Report) -> list[Remedy]:
    """Remedies, most useful first: of the checks that prevent approval, then of the others; none if approved."""
    if report.verdict is Verdict.APPROVED:
        return []
    unmet_checks = {finding.check for finding in unmet(report)}
    ordered = sorted(report.checks, key=lambda check: check.check not in unmet_checks)
    return [remedy for check in ordered for remedy in check.result.remedies]


def next_step(report: Report) -> str:
    """The most useful next step, in one sentence."""
    alias = plain(report.policy.alias) if report.policy.alias else ""
    if report.verdict is Verdict.APPROVED:
        return f"Promotion moves the alias {alias} to this version." if alias else "The policy names no alias to move."
    if any(not control.held for control in report.controls):
        return (
            "Find out why the control failed, attach a dossier that describes this model and its data correctly, then "
            "audit again."
        )
    # A remedy for a leak does not help if the figure is missing: first the audit must be able to measure it.
    missing = [finding for finding in unmet(report) if finding.status is Status.NOT_MEASURED]
    if report.verdict is Verdict.UNDECIDED and missing:
        return f"Resolve the missing measurement ({plain(missing[0].measurement.reason)}), then audit again."
    known = remedies(report)
    if known:
        return f"{capital(plain(known[0].action))}."
    return "No remedy was measured for these limits."


def notes(report: Report) -> list[str]:
    """The notes of the report and of its checks."""
    return [*report.notes, *(note for check in report.checks for note in check.result.notes)]
