"""Commands that show a report or act on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy_gate.cli.options import DryRun, Expect, Tracking
from privacy_gate.cli.terminal import say
from privacy_gate.errors import ConfigurationError

if TYPE_CHECKING:
    from privacy_gate.verdict.report import Report

app = typer.Typer()

ReportFile = Annotated[Path, typer.Argument(help="A report.json written by `audit` or `check`.", show_default=False)]


@app.command(epilog="Example: privacy-gate report privacy-gate-report/report.json --format markdown")
def report(
    path: ReportFile,
    format: Annotated[str, typer.Option("--format", "-f", help="One of text, markdown, html, json.")] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Show a stored report in another format."""
    from privacy_gate.documents import nearest
    from privacy_gate.reports import FORMATS

    if format not in FORMATS:
        raise ConfigurationError(f"--format {format}: unknown format; {nearest(format, FORMATS)}")
    text = FORMATS[format].render(load(path))
    if output is None:
        say(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output}: {error.strerror}; name a file that can be written") from error


@app.command(epilog="Example: privacy-gate promote privacy-gate-report/report.json --expect-current 2")
def promote(
    path: ReportFile,
    tracking_uri: Tracking = None,
    expect_current: Expect = None,
    dry_run: DryRun = False,
) -> None:
    """Act on a report: move the alias if it approves, else record the reasons. Hashes the model's files again first."""
    judged = load(path)
    decide(judged, path.parent, tracking_uri, expect_current=expect_current, dry_run=dry_run)
    # Recording that a model is blocked is no success: a pipeline must stop at the verdict's exit code.
    raise typer.Exit(judged.exit_code)


def decide(
    report: "Report", folder: Path, tracking_uri: str | None, *, expect_current: str | None, dry_run: bool
) -> None:
    """Writes the decision to the registry and prints what was written."""
    from privacy_gate.gate import steps as gate

    lines = gate.decide(report, folder, tracking_uri=tracking_uri, expect_current=expect_current, dry_run=dry_run)
    say("\n".join(lines))


def load(path: Path) -> "Report":
    """The report in the file. Raises ConfigurationError if it cannot be read."""
    from privacy_gate.verdict.report import read_report

    return read_report(path)


def summary(report: "Report") -> str:
    """The report in a few lines of text."""
    from privacy_gate.reports import FORMATS

    return FORMATS["text"].render(report)
