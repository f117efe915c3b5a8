"""What every view of a report tells, in the same order: the verdict, why, what would help, what was not looked at."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from privacy_gate.documents import Record
from privacy_gate.report import CheckRecord, Report
from privacy_gate.reports.words import Shown, bound, capital, check_title, level, metric, percent, plain, shown
from privacy_gate.verdict import Finding, Measurement, Remedy, Severity, Status, Verdict


class Reference(Record):
    """A text that asks for evidence, what it asks in short, and where a report has it."""

    reference: str
    asks: str
    found: str


class AttackClass(Record):
    """A class of attacks in public taxonomies.

    checks  the checks that test it
    words   how lists of what was not tested speak of it
    """

    name: str
    nist: tuple[str, ...] = ()
    atlas: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


class References(Record):
    """The data file that maps reports to public texts; `as_of` is when the texts were read."""

    as_of: str
    texts: tuple[Reference, ...]
    attacks: tuple[AttackClass, ...]


@cache
def references() -> References:
    """The mapping that the package brings."""
    text = resources.files("privacy_gate.reports").joinpath("references.json").read_text(encoding="utf-8")
    return References.model_validate_json(text)


@dataclass(frozen=True)
class Coverage:
    """One line of what was and was not tested, with its taxonomy ids."""

    what: str
    outcome: str
    tested: bool
    ids: str


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

    For instance "members found at 1 % false alarms (lira): 31.0 % [25.1 %, 37.2 %], limit ≤ 5 %".
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


def why(report: Report) -> str:
    """The verdict's ground in one sentence."""
    against, every = unmet(report), len(binding(report))
    if report.verdict is Verdict.APPROVED:
        return _why_approved(report)
    first = reasons(report)[0]
    if report.verdict is Verdict.BLOCKED:
        violated = sum(finding.status is Status.VIOLATED for finding in against)
        return f"{violated} of {every} blocking findings violate their limit; the gravest: {first}."
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
    parts += [f"{warned} as a warning not met"] if warned else []
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


def coverage(report: Report) -> list[Coverage]:
    """What was tested, by which checks; then what was not, as the report lists it. Both with taxonomy ids."""
    lines = []
    for known in references().attacks:
        checks = [check for check in report.checks if check.check in known.checks]
        if checks:
            tested = any(m.measured for check in checks for m in check.result.measurements)
            lines.append(Coverage(capital(known.name), _tested_by(checks), tested, _ids([known])))
    mapped = {name for known in references().attacks for name in known.checks}
    for check in report.checks:
        if check.check not in mapped:
            tested = any(m.measured for m in check.result.measurements)
            lines.append(Coverage(check_title(check.check), _tested_by([check]), tested, ""))
    for line in report.not_tested:
        named = [known for known in references().attacks if any(word in line.lower() for word in known.words)]
        lines.append(Coverage(capital(plain(line)), "not tested", False, _ids(named)))
    return lines


def _tested_by(checks: Iterable[CheckRecord]) -> str:
    parts = []
    for check in checks:
        subjects: dict[str, bool] = {}
        for m in check.result.measurements:
            subjects[m.subject] = subjects.get(m.subject, False) or m.measured
        if not any(subjects.values()):
            parts.append(f"{check.check}: not measured")
            continue
        named = [plain(subject) for subject, measured in subjects.items() if measured and subject]
        missing = [plain(subject) for subject, measured in subjects.items() if not measured and subject]
        text = check.check + (f" ({', '.join(named)})" if named else "")
        parts.append(text + (f"; not measured: {', '.join(missing)}" if missing else ""))
    return "tested by " + "; ".join(parts) if any(": not measured" not in part for part in parts) else "; ".join(parts)


def _ids(classes: Iterable[AttackClass]) -> str:
    every = [name for known in classes for name in (*known.nist, *known.atlas)]
    return ", ".join(dict.fromkeys(every))


@dataclass(frozen=True)
class MeasuredRow:
    """One figure, or a reason that several subjects share; `how` where the metric's others were made otherwise."""

    who: str
    shown: Shown | None
    reason: str = ""
    how: str = ""


@dataclass(frozen=True)
class Measured:
    """One metric of a check, and how its figures were made where that is the same for all."""

    title: str
    metric: str
    how: str
    rows: tuple[MeasuredRow, ...]


def measured(check: CheckRecord) -> list[Measured]:
    """The check's measurements by metric, in their own order; those missing for one reason together, last."""
    by_metric: dict[str, list[Measurement]] = {}
    for measurement in check.result.measurements:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    found = []
    for name, group in by_metric.items():
        ways = {how(m) for m in group if m.measured}
        common = next(iter(ways)) if len(ways) == 1 else ""
        rows = [MeasuredRow(plain(m.subject), shown(m), how="" if common else how(m)) for m in group if m.measured]
        reasons = dict.fromkeys(plain(m.reason) for m in group if not m.measured)
        for reason in reasons:
            missing = [plain(m.subject) for m in group if not m.measured and plain(m.reason) == reason]
            rows.append(MeasuredRow(", ".join(filter(None, missing)), None, reason))
        title = metric(name).title
        found.append(Measured(capital(title), name, common, tuple(rows)))
    return found


def how(measurement: Measurement) -> str:
    """How a figure's interval was made, and from what."""
    parts = [f"{level(measurement.confidence)} interval" if measurement.confidence else ""]
    parts += [plain(measurement.method), plain(measurement.samples)]
    return "; ".join(part for part in parts if part)


def rerun(report: Report) -> list[str]:
    """Shell commands that install the same version and repeat the pass on the same version of the model."""
    tool, _, version = plain(report.tool).partition(" ")
    uri = f"models:/{plain(report.candidate.name)}/{plain(report.candidate.version)}"
    install = f"{tool}=={version}" if version else tool
    return [
        shlex.join(["pip", "install", install]),
        shlex.join(["sha256sum", plain(report.policy.source)]) + f"  # expect {plain(report.policy.sha256)}",
        shlex.join(["privacy-gate", "check", uri, "--policy", plain(report.policy.source), "--no-promote"]),
    ]


def notes(report: Report) -> list[str]:
    """What the report and its checks remark."""
    return [*report.notes, *(note for check in report.checks for note in check.result.notes)]


def recipe_facts(report: Report) -> list[tuple[str, str]]:
    """How the candidate says it was trained, as name and value."""
    recipe = report.recipe
    facts = [("Backbone", plain(recipe.backbone.name))]
    if recipe.backbone.weights:
        facts += [("Its weights", plain(recipe.backbone.weights.uri)), ("Their sha256", recipe.backbone.weights.sha256)]
    if recipe.input:
        facts.append(("Input", f"{recipe.input.size} pixels, {recipe.input.interpolation}, crop {recipe.input.crop:g}"))
    facts += [
        ("Adaptation", f"{recipe.adaptation}, {recipe.classes:,} classes"),
        ("Optimiser", _settings(recipe.optimizer)),
        ("Schedule", _settings(recipe.schedule)),
        ("Training", f"{recipe.epochs:,} epochs, batches of {recipe.batch_size:,}, seed {recipe.seed}"),
        ("Label smoothing", f"{recipe.label_smoothing:g}"),
    ]
    return facts


def _settings(record: Record) -> str:
    values = record.model_dump(mode="json")
    name = values.pop("name")
    rest = ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
    return f"{name}: {rest}" if rest else str(name)


def data_facts(report: Report) -> list[tuple[str, str]]:
    """What the audit looked at, as name and value."""
    data = report.data
    facts = [
        ("sha256", plain(data.sha256)),
        ("Members", f"{data.members:,} examples the model was trained on"),
        ("Holdout", f"{data.holdout:,} examples it never saw, audited"),
        ("Population", f"{data.population:,} further examples, for calibration only"),
        ("Classes", f"{data.classes:,}"),
        (
            "Per class",
            f"{data.fewest_members_per_class:,} members at least, {data.median_members_per_class:g} in the median",
        ),
    ]
    if data.groups is not None:
        facts.append(("Groups", ", ".join(f"{plain(name)} {size:,}" for name, size in sorted(data.groups.items()))))
    if data.clients is not None:
        facts.append(("Clients", f"{data.clients:,}"))
    return facts
