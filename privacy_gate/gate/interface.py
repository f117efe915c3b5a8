"""The Python interface for notebooks and pipelines: one function per command, with plain arguments."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from privacy_gate.auditing.audit import Shard
from privacy_gate.gate import steps
from privacy_gate.gate.case import Request, open_case
from privacy_gate.gate.preparation import Prepared
from privacy_gate.gate.preparation import prepare as prepare_case
from privacy_gate.progress import Progress, silent
from privacy_gate.verdict.report import Report, read_report

if TYPE_CHECKING:
    from privacy_gate.compute.machine.device import Machine

STORE = "privacy-gate-store"
OUTPUT = Path("privacy-gate-report")


def check(
    uri: str,
    policy: str | Path,
    *,
    store: str = STORE,
    output: str | Path = OUTPUT,
    tracking_uri: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Report:
    """Runs the whole pass on `uri` (models:/NAME/VERSION or models:/NAME@ALIAS) and writes the report to `output`.

    Writes nothing to the registry: `promote` acts on the report. Its `verdict` is approved, blocked or undecided.
    Raises GateError if no verdict was reached: see `privacy_gate.errors`.
    """
    report, _, _ = steps.check(
        Request(uri, Path(policy), store, tracking_uri),
        output=Path(output),
        machine=_machine(device),
        now=_now(),
        progress=progress,
    )
    return report


def prepare(
    uri: str,
    policy: str | Path,
    *,
    store: str = STORE,
    tracking_uri: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Prepared:
    """Computes the results that the policy needs and the store does not have: the slow, resumable step."""
    # Shard() is the whole work; a pipeline that splits it uses the command `prepare --shard`.
    with open_case(Request(uri, Path(policy), store, tracking_uri), _now()) as case:
        return prepare_case(case, _machine(device), Shard(), progress)


def audit(
    uri: str,
    policy: str | Path,
    *,
    store: str = STORE,
    output: str | Path = OUTPUT,
    tracking_uri: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Judges the stored results and writes the report to `output`. Raises UndecidedError if a result is missing."""
    report, _ = steps.audit(
        Request(uri, Path(policy), store, tracking_uri),
        output=Path(output),
        now=_now(),
        progress=progress,
    )
    return report


def promote(
    output: str | Path = OUTPUT,
    *,
    tracking_uri: str | None = None,
    expect_current: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Writes the decision of the report in the folder `output` to the registry.

    An approved report moves the alias; any other verdict is only recorded.

    Returns one line for every step taken, or planned if `dry_run`. Raises ConflictError if the model's bytes or the
    alias changed since the audit.
    """
    folder = Path(output)
    return steps.decide(
        load_report(folder / "report.json"),
        folder,
        tracking_uri=tracking_uri,
        expect_current=expect_current,
        dry_run=dry_run,
    )


def load_report(path: str | Path) -> Report:
    """The report in the file. Raises ConfigurationError if it cannot be read, is no report or contradicts itself."""
    return read_report(Path(path))


def _machine(device: str) -> "Machine":
    from privacy_gate.compute.machine.device import Machine  # noqa: PLC0415 - torch takes seconds to import

    return Machine(device=device)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
