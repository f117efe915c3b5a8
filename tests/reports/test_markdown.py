"""The Markdown report for step summaries and pull requests."""

import json

from privacy_gate.reports.markdown import LIMIT, render
from privacy_gate.verdict.report import Report, parse_report


def crowded(report: Report, groups: int, name: str) -> Report:
    """The report with a finding for each of many groups."""
    document = report.model_dump(mode="json")
    finding = next(f for f in document["findings"] if f["status"] == "violated")
    copies = [
        finding | {"measurement": finding["measurement"] | {"subject": f"{name}{number}"}} for number in range(groups)
    ]
    document["findings"] += copies
    document["checks"][0]["result"]["measurements"] += [copy["measurement"] for copy in copies]
    document["notes"] = [f"{name}{number}" for number in range(groups)]
    return parse_report(json.dumps(document), "test")


def test_a_usual_report_fits_into_a_pull_request_comment(samples: dict[str, Report]) -> None:
    assert all(len(render(report)) < 65_536 for report in samples.values())


def test_verdict_reasons_and_remedies_come_before_the_tables(samples: dict[str, Report]) -> None:
    text = render(samples["blocked"])
    order = [
        "## ⛔ Blocked",
        "What would help most",
        "### Reasons",
        "### What would help",
        "### Findings",
        "not tested",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert places[0] == 0


def test_thousands_of_findings_with_long_names_stay_below_the_limit_and_omissions_are_named(
    samples: dict[str, Report],
) -> None:
    for name in ("group ", "<" * 2000):
        text = render(crowded(samples["blocked"], 2000, name))
        assert len(text.encode()) <= LIMIT <= 2**20
        assert text.startswith("## ⛔ Blocked: digits, version 3\n")
        assert "in the JSON report" in text or "The JSON report holds everything" in text
        assert text.count("<details>") == text.count("</details>")


def test_the_least_important_rows_are_omitted(samples: dict[str, Report]) -> None:
    text = render(crowded(samples["blocked"], 2000, "group "))
    assert "27.3 % [17.6 %, 39.7 %]" in text
    assert "more in the JSON report" in text
