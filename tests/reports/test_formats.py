"""Requirements on every format of the report."""

import html
import json
import os
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from privacy_gate.errors import ConfigurationError
from privacy_gate.reports import FORMATS
from privacy_gate.reports.coverage import coverage
from privacy_gate.reports.story import reasons
from privacy_gate.reports.words import SCOPE, STATUS, shown
from privacy_gate.verdict.judgement import Limit, Measurement, Severity, Status, judge
from privacy_gate.verdict.report import Report, parse_report

GOLDEN = Path(__file__).parents[1] / "data" / "reports"
VERDICTS = ("blocked", "approved", "undecided")
BANNED = r"\b(compliant|compliance|certified|anonymous|safe|private|no leakage|guarantees?d?|legally approved)\b"
HOSTILE = (
    "zq\"><script>alert(1)</script><img src=x onerror=alert(1)></style></pre></details><!-- 'x' `y` {{ 7 * 7 }} "
    "{% raw %} | a | b |\n\n# head\n- item\n1. one\r\n[x](http://evil.example) ![i](http://evil.example/i.png) "
    "<http://evil.example> www.evil.example @team #1 **bold** ~~gone~~ $x$ \u202e\u0000\u001b[2J &lt; \\| \\` qz"
)
VOID = {"meta", "br", "img", "hr", "input"}


class Structure(HTMLParser):
    """Start tags with their attributes' names, text, and whether every tag was closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def flat(text: str) -> str:
    return " ".join(html.unescape(text).replace("\u200b", "").split())


def read(name: str, text: str) -> str:
    """The text that a reader of the format sees, on one line."""
    if name == "html":
        return flat(Structure(text).text)
    if name == "markdown":
        return flat(Structure(MarkdownIt("commonmark").enable("table").render(text)).text)
    return flat(text)


def leaves(node: object) -> Iterator[str]:
    """Every text in a JSON document, keys of free mappings included."""
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    elif isinstance(node, str):
        yield node


def swapped(node: object, old: str, new: str) -> object:
    if isinstance(node, dict):
        return {key: swapped(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [swapped(value, old, new) for value in node]
    return new if node == old else node


def rewritten(report: Report, text: str) -> tuple[Report, int]:
    """The report with every free text replaced by `text` and a number, and how many texts were replaced."""
    document = json.loads(FORMATS["json"].render(report))
    document["candidate"]["alias"] = "an alias"
    document["data"]["groups"] = {f"{text}{i}": 3 for i in range(2)}
    document["versions"] = {f"{text}v": "a version"}
    document["notes"] = ["a note"]
    document["checks"][0]["settings"] = {f"{text}s": ["setting one", {f"{text}t": "setting two"}]}
    done = 0
    for old in dict.fromkeys(leaves(document)):
        changed = swapped(document, old, f"{text}{done}")
        try:
            parse_report(json.dumps(changed), "test")
        except ConfigurationError:  # not a free text
            continue
        document, done = changed, done + 1
    return parse_report(json.dumps(document), "test"), done


@pytest.mark.parametrize("verdict", VERDICTS)
def test_hostile_text_in_every_field_changes_the_structure_of_no_view(samples: dict[str, Report], verdict: str) -> None:
    hostile, fields = rewritten(samples[verdict], HOSTILE)
    neutral, _ = rewritten(samples[verdict], "neutral")
    assert fields >= 25
    for name in ("html", "markdown"):
        pages = [FORMATS[name].render(report) for report in (hostile, neutral)]
        if name == "markdown":
            pages = [MarkdownIt("commonmark").enable("table").render(page) for page in pages]
        assert Structure(pages[0]).tags == Structure(pages[1]).tags
        assert not [pair for pair in Structure(pages[0]).attributes if pair[0].startswith("on") or "evil" in pair[1]]
    for name in ("html", "markdown", "text"):
        written = FORMATS[name].render(hostile)
        assert "zq" in written
        assert not re.search("[\u0000\u001b\u202e]", written)
        assert len(written.splitlines()) == len(FORMATS[name].render(neutral).splitlines())
    for name in ("html", "markdown"):
        written = FORMATS[name].render(hostile)
        assert "<script" not in written
        assert "<img" not in written
    assert "<script" in read("html", FORMATS["html"].render(hostile)), "shown as text, not dropped"
    assert not re.search(r"(http|www)[:.]|(?<![\w;])@team|\]\(", FORMATS["markdown"].render(hostile))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_finding_and_every_reason_is_in_every_view(samples: dict[str, Report], verdict: str, name: str) -> None:
    report = samples[verdict]
    seen = read(name, FORMATS[name].render(report))
    if name == "json":
        assert parse_report(FORMATS[name].render(report), "test") == report
        return
    assert verdict in seen.lower()
    assert all(flat(line.what) in seen or name == "text" for line in coverage(report))
    assert all(line in seen for line in report.not_tested) or name != "text"
    if name == "text":
        assert all(flat(reason) in seen for reason in reasons(report))
        return
    for finding in report.findings:
        figure = shown(finding.measurement, finding.limit)
        parts = [figure.value, figure.low, figure.high] if figure else [finding.measurement.reason or ""]
        assert all(part in seen for part in parts)
        assert STATUS[finding.status] in seen
        if finding.waiver:
            assert finding.waiver.owner in seen
            assert finding.waiver.expires in seen
    assert all(remedy.basis in seen for check in report.checks for remedy in check.result.remedies)


def test_the_terminal_tells_of_every_warning_and_of_blocking_limits_first(samples: dict[str, Report]) -> None:
    report = samples["blocked"]
    low = Measurement(metric="holdout_accuracy", value=0.7, low=0.65, high=0.75, confidence=0.95)
    warned = judge("utility", low, Limit(min=0.8, severity=Severity.WARN))
    text = FORMATS["text"].render(report.model_copy(update={"findings": (*report.findings, warned)}))
    told = [line for line in text.splitlines() if line.startswith("  - ")]
    assert told[-1] == "  - warning: accuracy on held-out examples: 70.0 % [65.0 %, 75.0 %], limit ≥ 80 %"
    assert not any(line.startswith("  - warning") for line in told[:-1])
    assert "\nlimits: 5 met, 15 violated\n" in text


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_no_view_says_more_than_evidence_allows(samples: dict[str, Report], verdict: str, name: str) -> None:
    neutral, _ = rewritten(samples[verdict], "neutral")
    written = FORMATS[name].render(neutral)
    assert not re.search(BANNED, written, re.IGNORECASE)
    if name in ("html", "markdown"):
        assert SCOPE in read(name, written)
        assert "declared by the operator" in read(name, written)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_same_report_gives_the_same_bytes_and_so_does_its_own_json(
    samples: dict[str, Report], verdict: str, name: str
) -> None:
    report = samples[verdict]
    again = parse_report(FORMATS["json"].render(report), "test")
    assert again == report
    assert FORMATS[name].render(report) == FORMATS[name].render(again)
    assert FORMATS[name].render(report).endswith("\n")


@pytest.mark.parametrize(
    "name",
    [f"{verdict}.{ending}" for verdict in VERDICTS for ending in ("md", "txt")] + ["undecided.json", "undecided.html"],
)
def test_views_are_as_they_were(samples: dict[str, Report], name: str) -> None:
    verdict, ending = name.split(".")
    format_ = {"md": "markdown", "txt": "text", "json": "json", "html": "html"}[ending]
    written = FORMATS[format_].render(samples[verdict])
    if os.environ.get("PRIVACY_GATE_GOLDEN") == "write":
        (GOLDEN / name).write_text(written, encoding="utf-8")
    same = written == (GOLDEN / name).read_text(encoding="utf-8")
    assert same, f"{name} changed: look at it, then run with PRIVACY_GATE_GOLDEN=write and commit tests/data/reports"


@pytest.mark.parametrize("name", ["markdown", "html", "text"])
def test_a_failed_control_comes_before_all_figures(samples: dict[str, Report], name: str) -> None:
    document = samples["blocked"].model_dump(mode="json")
    document["checks"][0]["result"]["controls"][0] |= {"held": False, "detail": "0 of 8 planted canaries were found"}
    document |= {"verdict": "undecided", "exit_code": 4}
    seen = read(name, FORMATS[name].render(parse_report(json.dumps(document), "test")))
    first = seen.index("planted leak: 0 of 8 planted canaries were found")
    assert "A control of the audit itself failed" in seen[:first]
    assert "27.3 %" not in seen[:first]


def test_views_take_less_than_a_second_and_a_megabyte_for_twelve_attacks(samples: dict[str, Report]) -> None:
    document = samples["blocked"].model_dump(mode="json")
    result = document["checks"][0]["result"]
    for key, field in (("measurements", "subject"), ("exhibits", "attack")):
        result[key] += [part | {field: f"{part[field]}_twin"} for part in result[key]]
    document["findings"] += [
        finding | {"measurement": finding["measurement"] | {"subject": f"{finding['measurement']['subject']}_twin"}}
        for finding in document["findings"]
        if finding["check"] == "membership"
    ]
    report = parse_report(json.dumps(document), "test")
    FORMATS["html"].render(report)  # templates are compiled once
    for name, form in FORMATS.items():
        begun = time.perf_counter()
        written = form.render(report)
        assert time.perf_counter() - begun < 1
        assert len(written.encode()) < 1_000_000
        assert all(attack in read(name, written) for attack in ("lira_twin", "rmia_twin", "lira_offline_twin"))


def test_status_words_are_those_of_the_language_rules() -> None:
    assert STATUS[Status.MET] == "limit met"
    assert STATUS[Status.NOT_MEASURED] == "not measured"


def test_every_format_that_is_a_file_has_its_own_name() -> None:
    names = [form.file_name for form in FORMATS.values() if form.file_name]
    assert len(set(names)) == len(names) == 3
