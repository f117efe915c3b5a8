"""The report as one self-contained HTML page: the verdict first, inline charts, no script, nothing loaded."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from privacy_gate.reports import coverage, details, exposure, hostile, pictures, story, words
from privacy_gate.verdict.exhibits import ByzantinePlot, GradientScatter, Histogram, LawPlot, Roc, VulnerableRows
from privacy_gate.verdict.judgement import Exhibit, Finding, Measurement, RuleTable, Severity, Status
from privacy_gate.verdict.report import CheckRecord, Report

SYMBOLS = {Status.MET: "met", Status.VIOLATED: "violated", Status.NOT_MEASURED: "missing", Status.WAIVED: "waived"}

LARGE = (480, 200)
SMALL = (220, 90)
"""Width and height of the strongest attack's histogram, and of the others."""


@dataclass(frozen=True)
class Row:
    """One finding as the page shows it."""

    finding: Finding
    who: str
    shown: words.Shown | None
    interval: pictures.Interval
    status: str
    symbol: str


@dataclass(frozen=True)
class Group:
    """The findings of one limit, with the scale that their bars share."""

    title: str
    metric: str
    check: str
    bound: str
    warning: bool
    scale: pictures.Scale
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Legend:
    """One line of the ROC chart's legend: the attack's tpr in the metric `Gallery.rate`, and its AUC."""

    line: pictures.Line
    reached: words.Shown | None
    area: words.Shown | None


@dataclass(frozen=True)
class Gallery:
    """The charts of one check, the strongest attack first."""

    title: str
    rate: str
    roc: pictures.Chart | None
    legend: tuple[Legend, ...]
    histograms: tuple[pictures.Bars, ...]
    law: pictures.Chart | None
    hostile: pictures.Chart | None
    rules: RuleTable | None
    listed: VulnerableRows | None
    gradient: pictures.Chart | None
    forests: tuple[tuple[str, exposure.Forest], ...]


def render(report: Report) -> str:
    """The page. Texts from the report are escaped, on one line, and free of control characters."""
    environment = page_environment()
    # The page's security policy allows this one style sheet, by its hash, and nothing else.
    css = environment.get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template("report.html.jinja").render(
        report=report,
        css=Markup(css),  # noqa: S704 - the package's own file
        css_digest=Markup(digest),  # noqa: S704 - base64
        groups=[_group(findings) for findings in story.grouped(report)],
        galleries=[gallery for check in report.checks if (gallery := _gallery(check, report))],
        coverage=coverage,
        details=details,
        exposure=exposure,
        hostile=hostile,
        story=story,
        words=words,
        references=coverage.references(),
    )


@cache
def page_environment() -> Environment:
    """The templates of pages, with autoescape."""
    return Environment(
        loader=PackageLoader("privacy_gate", "reports/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )


def _finalize(value: object) -> object:
    """Any value as the page shows it: text on one line, with no line break between a number and its unit."""
    # Markup is HTML that the page made itself.
    if isinstance(value, Markup):
        return value
    return words.plain(value).replace(" %", "\u00a0%").replace(" points", "\u00a0points")


def _group(findings: list[Finding]) -> Group:
    # All findings of a group share metric, check and limit, so the first one speaks for them.
    first = findings[0]
    scale = pictures.shared_scale(findings)
    rows = tuple(
        Row(
            finding=finding,
            who=words.plain(finding.measurement.subject) or "all",
            shown=words.shown(finding.measurement, finding.limit),
            interval=pictures.interval(finding.measurement, finding.limit, scale.axis),
            status=words.STATUS[finding.status],
            symbol=SYMBOLS[finding.status],
        )
        for finding in findings
    )
    title = words.metric(first.measurement.metric).title
    return Group(
        title=words.capital(title),
        metric=first.measurement.metric,
        check=words.check_title(first.check),
        bound=words.bound(first),
        warning=first.limit.severity is Severity.WARN,
        scale=scale,
        rows=rows,
    )


def _gallery(check: CheckRecord, report: Report) -> Gallery | None:
    exhibits, forests = check.result.exhibits, exposure.forests(check)
    if not exhibits and not forests:
        return None
    # Curves and histograms know only their attack's name; its figures are looked up here.
    figures = {(m.metric, m.subject): m for m in check.result.measurements}
    # Attacks keep one order in all charts of the check: by their tpr at the lowest fpr that was measured.
    rate = _common_rate(check.result.measurements)
    order = _by_strength(exhibits, figures, rate)
    curves = sorted((e for e in exhibits if isinstance(e, Roc)), key=lambda e: order[e.attack])
    bars = sorted((e for e in exhibits if isinstance(e, Histogram)), key=lambda e: order[e.attack])
    laws = [e for e in exhibits if isinstance(e, LawPlot)]
    scatter = next((e for e in exhibits if isinstance(e, GradientScatter)), None)
    findings = [finding for finding in report.findings if finding.check == check.check]
    roc = pictures.roc_chart(curves, report.data.holdout, findings) if curves else None
    names = [curve.attack for curve in curves]
    lines = roc.lines if roc else ()
    return Gallery(
        title=words.check_title(check.check),
        rate=rate,
        roc=roc,
        legend=tuple(
            Legend(line, _figure(figures.get((rate, name))), _figure(figures.get(("auc", name))))
            for line, name in zip(lines, names, strict=True)
        ),
        # Only the strongest attack gets a large histogram.
        histograms=tuple(pictures.bars(e, *(LARGE if i == 0 else SMALL)) for i, e in enumerate(bars)),
        law=pictures.law_chart(laws) if laws else None,
        hostile=next((hostile.byzantine_chart(e) for e in exhibits if isinstance(e, ByzantinePlot)), None),
        rules=hostile.tried(check),
        listed=exposure.listed(check),
        gradient=exposure.gradient_chart(scatter) if scatter else None,
        forests=tuple(forests),
    )


def _common_rate(measurements: Iterable[Measurement]) -> str:
    """Name of the tpr metric at the lowest fpr that was measured for any attack; attacks are compared by it."""
    rates = [m.metric for m in measurements if m.measured and m.metric.startswith("tpr_at_")]
    return min(rates, key=lambda name: words.metric(name).chance or 1.0, default="")


def _by_strength(
    exhibits: Iterable[Exhibit], figures: dict[tuple[str, str], Measurement], rate: str
) -> dict[str, tuple[float, int]]:
    """Sort keys of the attacks: the highest tpr at the common rate comes first."""
    # The index keeps the policy's order among attacks with the same rate, or without one.
    names = dict.fromkeys(e.attack for e in exhibits if isinstance(e, Roc | Histogram))
    reached = [figures[rate, name].value if (rate, name) in figures else None for name in names]
    return {name: (-(value or 0.0), i) for i, (name, value) in enumerate(zip(names, reached, strict=True))}


def _figure(measurement: Measurement | None) -> words.Shown | None:
    return words.shown(measurement) if measurement else None
