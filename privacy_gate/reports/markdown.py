"""Markdown for step summaries and pull requests: the verdict first, then tables, details folded, limited in size.

Texts from the report are untrusted. Characters that Markdown or HTML could read as markup, a link or a mention are
written as character references, which are always literal text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from privacy_gate.reports import coverage, details, exposure, hostile, story, words
from privacy_gate.verdict.judgement import Finding, Severity, Status, Verdict
from privacy_gate.verdict.report import CheckRecord, PolicyRecord, Report

Item = TypeVar("Item")

LIMIT = 1_000_000
"""Bytes; GitHub silently drops a step summary above 1 MiB."""

LONGEST = 300
"""Characters of one text from the report; the JSON report has the rest."""

MOST = 200
"""Most rows of one table, and most items of one list."""

SIGNS = {Verdict.APPROVED: "✅", Verdict.BLOCKED: "⛔", Verdict.UNDECIDED: "❔"}
STATUS_SIGNS = {Status.MET: "✅", Status.VIOLATED: "⛔", Status.NOT_MEASURED: "❔", Status.WAIVED: "⚠️"}

SHOWN_REASONS = 5
"""Most reasons above the table of findings, which has them all."""

# Escaping everything would be correct but unreadable as text, so punctuation that cannot be markup is kept.
_PUNCTUATION = re.compile(
    r"""(?P<harmless>
        (?<!^)[-+=] | [,;?%/()'"]           # bullets and underlines only count at the beginning
      | (?<=\d)\.(?=\d) | (?<=[^\d\s])\.(?=\s|\Z)  # not the number of a list, not a host name
      | :(?=\s|\Z)                          # not the scheme of a link
      | (?<=[A-Za-z0-9])_(?=[A-Za-z0-9])    # no emphasis inside a word
      | \[(?=[\d−]) | (?<=[\d%])\](?![\[(:])  # an interval, not a link
    ) | [!-/:-@\[-`{-~]""",
    re.VERBOSE,
)


def prose(text: object) -> str:
    """Text from the report for a sentence or cell. A mention or an issue number stays plain text.

    >>> prose("a|b <i> @team")
    'a&#124;b &#60;i&#62; &#64;&#8203;team'
    >>> prose("tpr_at_0.1_fpr: 3.1 % [2.2 %, 4.4 %].")
    'tpr_at_0.1_fpr: 3.1 % [2.2 %, 4.4 %].'
    """
    # GitHub finds mentions and issue numbers even in references, but not across a zero-width space.
    return re.sub(r"(&#(?:64|35);)", r"\1&#8203;", _literal(text))


def code(text: object) -> str:
    """Text from the report as code that can be copied.

    >>> code("models:/a@b")
    '<code>models&#58;/a&#64;b</code>'
    """
    return f"<code>{_literal(text)}</code>"


def _literal(text: object) -> str:
    # Shortened before it is escaped: half a character reference would be shown as garbage.
    line = words.plain(text)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    return _PUNCTUATION.sub(lambda match: match["harmless"] or f"&#{ord(match[0])};", line)


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown. Blocks at the end are omitted if it would exceed LIMIT bytes."""
    blocks = [
        _head(report),
        _reasons(report),
        _list("What would help", [f"{remedy.action} ({remedy.basis})" for remedy in story.remedies(report)]),
        _findings(report),
        _controls(report),
        _list("Notes", story.notes(report)),
        _coverage(report),
        *(_rules(check) for check in report.checks),
        *(_exposed(check) for check in report.checks),
        *(_measurements(check) for check in report.checks),
        _identity(report),
        _rerun(report),
    ]
    # 200 bytes are reserved for the sentence that says that something is missing.
    text, room = "", LIMIT - 200
    for block in filter(None, blocks):
        if len((text + block).encode()) > room:
            return text + "The rest is omitted: this format is limited in size. The JSON report holds everything.\n"
        text += block + "\n"
    return text


def _release(policy: PolicyRecord) -> str:
    """What an attacker sees; older reports have the release context alone."""
    context = f"release context {prose(policy.release_context)}"
    return f"release of {prose(policy.released)}, {context}" if policy.released else context


def _head(report: Report) -> str:
    candidate, policy = report.candidate, report.policy
    # An approved model needs no help.
    label = "Next" if report.verdict is Verdict.APPROVED else "What would help most"
    return "\n".join(
        [
            f"## {SIGNS[report.verdict]} {report.verdict.capitalize()}: {prose(candidate.name)}, "
            f"version {prose(candidate.version)}\n",
            f"{prose(story.why(report))}\n",
            f"**{label}:** {prose(story.next_step(report))}\n",
            f"Policy {prose(policy.name)}, version {policy.version}; {_release(policy)}, "
            f"declared by the operator. {words.SCOPE}\n",
        ]
    )


def _reasons(report: Report) -> str:
    reasons = story.reasons(report)
    rest = len(reasons) - SHOWN_REASONS
    more = f"- and {rest:,} more in the findings below\n" if rest > 0 else ""
    return _list("Reasons, most serious first", reasons[:SHOWN_REASONS]) + more


def _findings(report: Report) -> str:
    # A flat table: Markdown has no row groups.
    findings = [finding for group in story.grouped(report) for finding in group]
    if not findings:
        return "### Findings\n\nNo limit of the policy was judged.\n"
    return "### Findings\n\n" + _table(("Outcome", "Metric", "Subject", "Figure", "Limit"), findings, _finding)


def _finding(finding: Finding) -> tuple[str, ...]:
    figure = words.shown(finding.measurement, finding.limit)
    outcome = f"{STATUS_SIGNS[finding.status]} {words.STATUS[finding.status]}"
    if finding.limit.severity is Severity.WARN:
        outcome += " (warning only)"
    if finding.uncertain:
        outcome += ": the estimate meets it, its interval does not"
    if note := finding.waiver:
        outcome += f" by {prose(note.owner)} until {prose(note.expires)}: {prose(note.reason)}"
    return (
        outcome,
        prose(words.capital(words.metric(finding.measurement.metric).title)),
        code(finding.measurement.subject) if finding.measurement.subject else "all",
        str(figure) if figure else f"not measured: {prose(finding.measurement.reason)}",
        words.bound(finding),
    )


def _controls(report: Report) -> str:
    if not report.controls:
        return ""
    return "### Controls of the audit\n\n" + _table(
        ("Outcome", "Control", "Detail"),
        report.controls,
        lambda control: ("✅ passed" if control.held else "⛔ failed", prose(control.name), prose(control.detail)),
    )


def _coverage(report: Report) -> str:
    table = _table(
        ("Class of attack or question", "Outcome", "NIST AI 100-2, MITRE ATLAS"),
        coverage.coverage(report),
        lambda line: (
            prose(line.what),
            ("✅ " if line.tested else "❔ ") + prose(line.outcome),
            prose(line.ids or "none"),
        ),
    )
    attacker = "\n" + _list("The assumed attacker", report.threat_model) if report.threat_model else ""
    return f"### What was tested, and what was not\n\n{table}{attacker}"


def _rules(check: CheckRecord) -> str:
    rules = hostile.tried(check)
    if rules is None:
        return ""
    table = _table(hostile.HEADS, rules.rules, lambda trial: [prose(cell) for cell in hostile.cells(rules, trial)])
    title = "Aggregation rules that would pass, and the accuracy they cost"
    return _folded(title, f"{prose(hostile.caption(rules))}\n\n{table}")


def _exposed(check: CheckRecord) -> str:
    rows = exposure.listed(check)
    if rows is None:
        return ""
    table = _table(
        exposure.HEADS,
        rows.rows,
        lambda row: [code(cell) if i == 0 else prose(cell) for i, cell in enumerate(exposure.cells(row))],
    )
    return _folded("The most exposed examples", f"{prose(exposure.caption(rows))}\n\n{table}")


def _measurements(check: CheckRecord) -> str:
    table = _table(
        ("Metric", "Subject", "Figure", "Method"),
        [(group, row) for group in details.measured(check) for row in group.rows],
        lambda pair: (
            prose(pair[0].title),
            code(pair[1].who) if pair[1].who else "all",
            str(pair[1].shown) if pair[1].shown else f"not measured: {prose(pair[1].reason)}",
            prose(pair[0].how or pair[1].how),  # common to the metric, or the row's own
        ),
    )
    return _folded(f"Measurements: {words.check_title(check.check).lower()}", table)


def _identity(report: Report) -> str:
    candidate, policy = report.candidate, report.policy
    rows = [
        ("**Candidate**", code(candidate.uri)),
        ("sha256 of its files", code(candidate.digest)),
        ("judged at", prose(words.moment(report.created))),
        *((name, prose(value)) for name, value in details.champion_facts(report)),
        ("**Policy**", code(policy.source)),
        ("sha256", code(policy.sha256)),
        ("recorded before measuring, at", prose(words.moment(policy.recorded))),
        ("**Audit data**", ""),
        *((name, prose(value)) for name, value in details.data_facts(report)),
        ("**Recipe**", ""),
        *((name, prose(value)) for name, value in details.recipe_facts(report)),
        ("**Tool**", prose(report.tool)),
        *((prose(name), prose(version)) for name, version in sorted(report.versions.items())),
    ]
    return _folded("Candidate, policy, data and recipe", _table(("", ""), rows, lambda row: row))


def _rerun(report: Report) -> str:
    lines = "\n".join(_literal(line) for line in details.rerun(report))
    return f"### How to repeat the audit\n\n<pre><code>{lines}</code></pre>\n"


def _table(heads: Sequence[str], items: Sequence[Item], cells: Callable[[Item], Sequence[str]]) -> str:
    lines = [_row(heads), _row(["---"] * len(heads)), *(_row(cells(item)) for item in items[:MOST])]
    return "\n".join(lines) + "\n" + _more(items)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"### {title}\n\n" + "\n".join(f"- {prose(line)}" for line in lines[:MOST]) + "\n" + _more(lines)


def _more(items: Sequence[object]) -> str:
    rest = len(items) - MOST
    return f"\nand {rest:,} more in the JSON report\n" if rest > 0 else ""


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_literal(title)}</summary>\n\n{body}\n</details>\n"
