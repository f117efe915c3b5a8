"""The whole gate on one page: open a case, prepare it, audit it, report, decide; or advise."""

import datetime
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from privacy_gate.auditing import advice
from privacy_gate.auditing.advice import Advice
from privacy_gate.auditing.audit import Shard, subject_of
from privacy_gate.checks.base.federations import untrainable_references
from privacy_gate.dossier.alternatives import Family, alternatives
from privacy_gate.errors import CandidateError, UndecidedError
from privacy_gate.gate.case import Case, Request, open_case
from privacy_gate.gate.output import make_folder, refuse_thumbnails, write_report, write_thumbnails
from privacy_gate.gate.preparation import Prepared, compute, prepare
from privacy_gate.progress import Progress
from privacy_gate.registry import promotion
from privacy_gate.reports import FORMATS
from privacy_gate.verdict.judgement import Verdict
from privacy_gate.verdict.report import Report

if TYPE_CHECKING:
    from privacy_gate.compute.cluster import Cluster
    from privacy_gate.compute.machine.device import Machine


def check(
    request: Request,
    *,
    output: Path,
    machine: "Machine",
    now: datetime.datetime,
    progress: Progress,
    thumbnails: Path | None = None,
    cluster: "Cluster | None" = None,
) -> tuple[Report, list[Path], Prepared]:
    """The whole pass except writing the decision to the registry, which is `decide`.

    Returns the report, its files and what was computed. Also writes `thumbnails`, if a file is named.
    """
    with open_case(request, now) as case:
        if thumbnails:
            refuse_thumbnails(thumbnails, output, case.policy)
        # Fails now, not after hours of computing, if the folder cannot be written.
        make_folder(output)
        prepared = prepare(case, machine, Shard(), progress, cluster)
        report = case.audit(now, progress)
        files = write_report(report, output)
        if thumbnails:
            write_thumbnails(thumbnails, report, case.data)
    return report, files, prepared


def audit(
    request: Request,
    *,
    output: Path,
    now: datetime.datetime,
    progress: Progress,
    thumbnails: Path | None = None,
) -> tuple[Report, list[Path]]:
    """Judges the stored results: the report and its files. Also writes `thumbnails`, if a file is named."""
    with open_case(request, now) as case:
        if thumbnails:
            refuse_thumbnails(thumbnails, output, case.policy)
        report = case.audit(now, progress)
        files = write_report(report, output)
        if thumbnails:
            write_thumbnails(thumbnails, report, case.data)
    return report, files


def decide(
    report: Report, folder: Path, *, tracking_uri: str | None, expect_current: str | None, dry_run: bool
) -> list[str]:
    """Writes the decision to the registry; returns one line for every step taken, or planned if `dry_run`.

    Approval moves the policy's alias after hashing the artifact again. Any other verdict is only recorded.
    """
    # The report's files are stored with the decision, as far as they are in the folder.
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


def advise(
    case: Case,
    machine: "Machine",
    *,
    references: int,
    families: Iterable[Family],
    epsilons: Iterable[float],
    now: datetime.datetime,
    progress: Progress,
) -> tuple[Advice, int]:
    """Measures how much other recipes would leak and how accurate they would be. Also returns the jobs computed.

    The unchanged recipe comes first, because its most vulnerable rows are those that the alternative `drop` drops.
    An alternative that cannot be trained becomes a line with its reason; the unchanged recipe must be trainable.
    """
    from privacy_gate.compute.training.accountant import private_settings  # noqa: PLC0415 - imports torch, slowly

    subject, computed = subject_of(case.candidate, case.data, case.policy), 0
    size, goals = advice.reference_rows(subject), advice.targets(case.policy, int(advice.pool_of(subject).sum()))
    tried = set(families)
    options = alternatives(
        subject.recipe, tried, epsilons, lambda recipe, epsilon: private_settings(recipe, epsilon, size)
    )
    rows: list[advice.Row] = []
    as_is: advice.Trained | None = None
    for done, option in enumerate(options):
        progress("alternatives", done, len(options))
        if option.reason:
            rows.append(advice.unmeasured(option, goals))
            continue
        # Which rows to drop is only known once the unchanged recipe, the first option, has been measured.
        without = advice.dropped_rows(option, subject, as_is)
        jobs = advice.jobs(option, subject, references, without)
        if reason := untrainable_references(case.data, jobs):
            if as_is is None:  # without the unchanged recipe there is nothing to compare with
                raise UndecidedError(reason)
            rows.append(advice.unmeasured(replace(option, reason=reason), goals))
            continue
        try:
            computed += compute(case, jobs, machine, _named(option.name, progress))[0]
        except CandidateError as error:
            # One alternative that fails must not end a run that measures ten others.
            if as_is is None:
                raise
            rows.append(advice.unmeasured(replace(option, reason=str(error)), goals))
            continue
        trained = advice.gather(option, subject, references, without, case.store.get)
        first, as_is = as_is is None, as_is or trained
        rows.append(advice.measure(option, subject, trained, as_is, goals, case.policy.confidence))
        if first and "release" in tried:
            rows += advice.measure_releases(option, subject, trained, goals, case.policy.confidence)
    progress("alternatives", len(options), len(options))
    return advice.advice(case.candidate, case.policy, case.rules.sha256, subject, references, rows, now), computed


def _named(name: str, progress: Progress) -> Progress:
    """Progress with the name of the alternative in front: each alternative counts from 0."""
    return lambda task, done, total: progress(f"{name}: {task}", done, total)
