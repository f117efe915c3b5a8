"""The gate's story, on one page: pull, plan, prepare, audit, report, decide."""

import datetime
import errno
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from privacy_gate import advice, promotion, registry
from privacy_gate.advice import Advice
from privacy_gate.alternatives import Family, alternatives
from privacy_gate.audit import Shard, audit, plan, subject_of
from privacy_gate.candidate import Candidate
from privacy_gate.champion import Champion
from privacy_gate.checks.federations import untrainable_references
from privacy_gate.checks.vulnerability import Vulnerability
from privacy_gate.compute.scratch import scratch_folder
from privacy_gate.dataset import AuditData, read_data
from privacy_gate.errors import CandidateError, ConfigurationError, DatasetError, UndecidedError
from privacy_gate.job import Job
from privacy_gate.policy import Policy, load_policy
from privacy_gate.progress import Progress
from privacy_gate.report import Report
from privacy_gate.reports import FORMATS, advice_page, json_text
from privacy_gate.reports.thumbnails import thumbnails as thumbnail_page
from privacy_gate.store import Store
from privacy_gate.verdict import Verdict

if TYPE_CHECKING:
    from privacy_gate.compute.cluster import Cluster
    from privacy_gate.compute.machine import Machine


@dataclass(frozen=True)
class Case:
    """A pinned candidate, its audit data, the policy that will judge it, and the champion where that speaks of one."""

    policy: Policy
    policy_sha256: str
    source: str
    candidate: Candidate
    data: AuditData
    store: Store
    recorded: str
    champion: Champion | None = None

    @property
    def compared(self) -> Champion | None:
        """The champion; with the reason, where computing with it failed, that it cannot be compared."""
        if self.champion is None or self.champion.reason or not (refusal := self.store.recall(self._refusal)):
            return self.champion
        return self.champion.refused(refusal)

    @property
    def jobs(self) -> list[Job]:
        """Everything the verdict needs computed."""
        return plan(self.policy, self.candidate, self.data, self.compared)

    def of_champion(self, job: Job) -> bool:
        """Whether the job reads the champion's files in place of the candidate's."""
        artifact = None if self.champion is None else self.champion.artifact
        return artifact not in (None, self.candidate.digest) and getattr(job, "artifact", None) == artifact

    def refuse_champion(self, reason: str) -> None:
        """Keeps in the store that computing with the champion failed: it is no fault of the candidate's."""
        self.store.remember(self._refusal, reason)

    @property
    def _refusal(self) -> str:
        return f"champion {self.champion.artifact if self.champion else None} fails on {self.data.digest}"

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of the jobs that the store lacks."""
        return self.store.missing(jobs)

    def audit(self, now: datetime.datetime, progress: Progress) -> Report:
        """The report, from what the store holds. Raises UndecidedError where it lacks a part."""
        if missing := self.missing(self.jobs):
            kinds = ", ".join(
                f"{count} {kind}" for kind, count in Counter(type(job).__name__ for job in missing).items()
            )
            raise UndecidedError(
                f"store {self.store.root}: {len(missing)} of {len(self.jobs)} results are missing ({kinds}): run "
                "`prepare` first, every shard of it"
            )
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
            self.compared,
        )


class Prepared(NamedTuple):
    """What preparing did: jobs computed, jobs whose results were there, and seconds that computing took."""

    computed: int
    stored: int
    seconds: float


@contextmanager
def open_case(
    uri: str, policy: Path, *, store: str, tracking_uri: str | None, now: datetime.datetime
) -> Iterator[Case]:
    """Pulls the candidate, and the champion if the policy compares, into a private folder for as long as it is open.

    The policy is read first, and its sha256 noted in the store before anything is measured.
    """
    rules, sha256 = load_policy(policy)
    results = Store(store)
    with scratch_folder() as folder:
        wanted = any(check.reads_rounds for check in rules.checks)
        candidate = registry.pull(uri, folder, tracking_uri, rounds=wanted)
        champion = None
        if rules.compares and rules.promotion:
            champion = registry.champion_of(candidate, rules.promotion.alias, folder / "champion", tracking_uri)
        data = read_data(candidate.dossier.data, candidate.recipe.classes)
        recorded = results.remember(f"policy {sha256} judges {candidate.digest}", now.isoformat(timespec="seconds"))
        yield Case(rules, sha256, str(policy), candidate, data, results, recorded, champion)


def prepare(
    case: Case, machine: "Machine", part: Shard, progress: Progress, cluster: "Cluster | None" = None
) -> Prepared:
    """Computes what the store lacks, here or on a cluster: of the candidate, then of the champion."""
    jobs = part.take(case.jobs)
    own, rival = ([job for job in jobs if case.of_champion(job) is other] for other in (False, True))
    done = _compute(case, own, machine, progress, cluster)
    if not rival or case.champion is None:
        return done
    began = time.monotonic()
    try:
        more = _compute(case, rival, machine, progress, cluster, case.champion.folder)
    except DatasetError:
        raise
    except CandidateError as error:
        case.refuse_champion(f"put in the candidate's place, it failed: {error}")
        more = Prepared(0, 0, time.monotonic() - began)
    return Prepared(done.computed + more.computed, done.stored + more.stored, done.seconds + more.seconds)


def _compute(
    case: Case,
    jobs: Sequence[Job],
    machine: "Machine",
    progress: Progress,
    cluster: "Cluster | None" = None,
    folder: Path | None = None,
) -> Prepared:
    """folder: where the files lie of whom the jobs speak of; None: the candidate's."""
    # torch takes seconds to import, and only this step needs it.
    from privacy_gate.compute.cluster import run_on_cluster  # noqa: PLC0415
    from privacy_gate.compute.numerics import numerics  # noqa: PLC0415
    from privacy_gate.compute.run import run  # noqa: PLC0415
    from privacy_gate.compute.work import Inputs  # noqa: PLC0415

    missing, candidate = case.missing(jobs), case.candidate
    folder = folder or candidate.folder
    # A round log may be larger than all the rest; what reads it stays where it is.
    away = [job for job in missing if cluster and not hasattr(job, "rounds")]
    here = [job for job in missing if not cluster or hasattr(job, "rounds")]
    began = time.monotonic()
    if cluster and away:
        manifest, classes = candidate.dossier.data, candidate.recipe.classes
        run_on_cluster(away, manifest, classes, folder, machine, case.store, cluster, progress)
    if here:
        inputs = Inputs(case.data, folder, candidate.rounds)
        run(here, inputs, machine, case.store.made_by(numerics(machine)), progress)
    return Prepared(len(missing), len(jobs) - len(missing), time.monotonic() - began)


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
    thumbnails: Path | None = None,
    cluster: "Cluster | None" = None,
) -> tuple[Report, list[Path], Prepared]:
    """The whole pass but for the decision's writing: the report and its files, and thumbnails where asked for; and what
    was computed for it.
    """
    with open_case(uri, policy, store=store, tracking_uri=tracking_uri, now=now) as case:
        if thumbnails:
            refuse_thumbnails(thumbnails, output, case.policy)
        make_folder(output)
        prepared = prepare(case, machine, Shard(), progress, cluster)
        report = case.audit(now, progress)
        if thumbnails:
            write_thumbnails(thumbnails, report, case.data)
    return report, write(report, output), prepared


def refuse_thumbnails(file: Path, folder: Path, policy: Policy) -> None:
    """Raises ConfigurationError where training records would lie with the report, or nothing would be listed."""
    if file.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"--thumbnails {file}: lies in the report's folder {folder}, whose files go to the registry; name a file "
            "elsewhere"
        )
    if not any(isinstance(check, Vulnerability) for check in policy.checks):
        raise ConfigurationError(
            "--thumbnails: the policy lists no examples: add the check 'vulnerability', or leave it out"
        )


def write_thumbnails(file: Path, report: Report, data: AuditData) -> None:
    """Writes the listed examples' images to a page that only its owner may read: it shows training records."""
    text = thumbnail_page(report, data)
    try:
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as page:
            page.write(text)
    except OSError as error:
        raise ConfigurationError(f"--thumbnails {file}: {error.strerror}; name a file that can be written") from error


def write(report: Report, folder: Path) -> list[Path]:
    """Writes the report in every format a file is made of; returns the paths."""
    return _write(((form.file_name, form.render(report)) for form in FORMATS.values() if form.file_name), folder)


def make_folder(folder: Path) -> None:
    """Makes the folder of reports, before hours of computing. Raises ConfigurationError where it cannot be written."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}; name a folder that can be written") from error


def _write(texts: Iterable[tuple[str, str]], folder: Path) -> list[Path]:
    paths = []
    make_folder(folder)
    with _writing(folder):
        for name, text in texts:
            paths.append(folder / name)
            paths[-1].write_text(text, encoding="utf-8")
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
    """What other recipes would leak and cost, measured; and how many jobs were computed for it.

    The recipe as it is comes first: it names the rows whose dropping is tried.
    """
    from privacy_gate.compute.accountant import private_settings  # noqa: PLC0415 - imports torch's kin, as above

    subject, computed = subject_of(case.candidate, case.data, case.policy), 0
    size, goals = advice.reference_rows(subject), advice.targets(case.policy, int(advice.pool_of(subject).sum()))
    options = alternatives(
        subject.recipe, families, epsilons, lambda recipe, epsilon: private_settings(recipe, epsilon, size)
    )
    rows: list[advice.Row] = []
    as_is: advice.Trained | None = None
    for done, option in enumerate(options):
        progress("alternatives", done, len(options))
        if option.reason:
            rows.append(advice.unmeasured(option, goals))
            continue
        without = advice.dropped_rows(option, subject, as_is)
        jobs = advice.jobs(option, subject, references, without)
        if lacking := untrainable_references(case.data, jobs):
            if as_is is None:
                raise UndecidedError(lacking)
            rows.append(advice.unmeasured(replace(option, reason=lacking), goals))
            continue
        try:
            computed += _compute(case, jobs, machine, _named(option.name, progress))[0]
        except CandidateError as error:
            if as_is is None:
                raise
            rows.append(advice.unmeasured(replace(option, reason=str(error)), goals))
            continue
        trained = advice.gather(option, subject, references, without, case.store.get)
        as_is = as_is or trained
        rows.append(advice.measure(option, subject, trained, as_is, goals, case.policy.confidence))
    progress("alternatives", len(options), len(options))
    return advice.advice(case.candidate, case.policy, case.policy_sha256, subject, references, rows, now), computed


def _named(name: str, progress: Progress) -> Progress:
    """Progress that says which alternative it is of: each counts from the start."""
    return lambda task, done, total: progress(f"{name}: {task}", done, total)


def write_advice(advised: Advice, folder: Path) -> list[Path]:
    """Writes the table as a page and as JSON; returns the paths."""
    return _write([("advice.json", json_text.render(advised)), ("advice.html", advice_page.render(advised))], folder)
