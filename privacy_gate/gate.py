"""The gate's story, on one page: pull, plan, prepare, audit, report, decide."""

import datetime
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from privacy_gate import promotion, registry
from privacy_gate.audit import Shard, audit, plan
from privacy_gate.candidate import Candidate
from privacy_gate.dataset import AuditData, read_data
from privacy_gate.errors import ConfigurationError
from privacy_gate.job import Job
from privacy_gate.policy import Policy, load_policy
from privacy_gate.progress import Progress
from privacy_gate.report import Report
from privacy_gate.reports import FORMATS
from privacy_gate.store import Store
from privacy_gate.verdict import Verdict

if TYPE_CHECKING:
    from privacy_gate.compute.machine import Machine


@dataclass(frozen=True)
class Case:
    """A pinned candidate, its audit data, and the policy that will judge it."""

    policy: Policy
    policy_sha256: str
    source: str
    candidate: Candidate
    data: AuditData
    store: Store
    recorded: str

    @property
    def jobs(self) -> list[Job]:
        """Everything the verdict needs computed."""
        return plan(self.policy, self.candidate, self.data)

    def audit(self, now: datetime.datetime, progress: Progress) -> Report:
        """The report, from what the store holds."""
        return audit(
            self.policy,
            self.policy_sha256,
            self.source,
            self.candidate,
            self.data,
            self.store.get,
            self.recorded,
            now,
            progress,
        )


@contextmanager
def open_case(
    uri: str, policy: Path, *, store: str, tracking_uri: str | None, now: datetime.datetime
) -> Iterator[Case]:
    """Pulls the candidate into a private folder for as long as the case is open.

    The policy is read first, and its sha256 noted in the store before anything is measured.
    """
    rules, sha256 = load_policy(policy)
    results = Store(store)
    with tempfile.TemporaryDirectory(prefix="privacy-gate-") as folder:
        candidate = registry.pull(uri, Path(folder), tracking_uri)
        data = read_data(candidate.dossier.data, candidate.recipe.classes)
        recorded = results.remember(f"policy {sha256} judges {candidate.digest}", now.isoformat(timespec="seconds"))
        yield Case(rules, sha256, str(policy), candidate, data, results, recorded)


def prepare(case: Case, machine: "Machine", part: Shard, progress: Progress) -> tuple[int, int]:
    """Computes what the store lacks; returns how many jobs were computed and how many were there."""
    # torch takes seconds to import, and only this step needs it.
    from privacy_gate.compute.run import Inputs, run  # noqa: PLC0415

    jobs = part.take(case.jobs)
    missing = [job for job in jobs if not case.store.has(job)]
    run(missing, Inputs(case.data, case.candidate.folder), machine, case.store, progress)
    return len(missing), len(jobs) - len(missing)


def check(
    uri: str,
    policy: Path,
    *,
    store: str,
    output: Path,
    tracking_uri: str | None,
    machine: "Machine",
    now: datetime.datetime,
    progress: Progress,
) -> tuple[Report, list[Path]]:
    """The whole pass but for the decision's writing: the report and its files."""
    with open_case(uri, policy, store=store, tracking_uri=tracking_uri, now=now) as case:
        prepare(case, machine, Shard(), progress)
        report = case.audit(now, progress)
    return report, write(report, output)


def write(report: Report, folder: Path) -> list[Path]:
    """Writes the report in every format a file is made of; returns the paths."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form in FORMATS.values():
            if form.file_name:
                path = folder / form.file_name
                path.write_text(form.render(report), encoding="utf-8")
                paths.append(path)
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}; name a folder that can be written") from error
    return paths


def decide(
    report: Report, folder: Path, *, tracking_uri: str | None, expect_current: str | None, dry_run: bool
) -> list[str]:
    """Acts on the report in the registry; returns one line for every step taken (or planned, when dry).

    Approval moves the policy's alias, after hashing the artifact again; anything else is only recorded.
    """
    paths = [folder / form.file_name for form in FORMATS.values() if form.file_name]
    files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    if report.verdict is Verdict.APPROVED and report.policy.alias:
        done = promotion.promote(
            report,
            alias=report.policy.alias,
            expect_current=expect_current,
            dry_run=dry_run,
            artifacts=files,
            tracking_uri=tracking_uri,
        )
    else:
        done = promotion.record(report, dry_run=dry_run, artifacts=files, tracking_uri=tracking_uri)
    return list(done.steps)
