"""Formats of the report, all made from its JSON. To add one: a file with a `render`, and a line in FORMATS."""

from collections.abc import Callable
from dataclasses import dataclass

from privacy_gate.reports import html_page, json_text, markdown, text
from privacy_gate.verdict.report import Report


@dataclass(frozen=True)
class Format:
    """How a report is written, and the name of its file; None if the format is only printed."""

    render: Callable[[Report], str]
    file_name: str | None = None


FORMATS: dict[str, Format] = {
    "json": Format(json_text.render, "report.json"),
    "markdown": Format(markdown.render, "report.md"),
    "html": Format(html_page.render, "report.html"),
    "text": Format(text.render),
}
