"""Who is judged, by which policy, on which data: pulled for as long as it takes."""

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from privacy_gate.auditing.audit import audit, plan
from privacy_gate.auditing.policy import Policy, PolicyInForce, load_policy
from privacy_gate.compute.machine.scratch import scratch_folder
from privacy_gate.dossier.candidate import Candidate
from privacy_gate.dossier.champion import Champion
from privacy_gate.dossier.dataset import AuditData, read_data
from privacy_gate.errors import UndecidedError
from privacy_gate.jobs.kinds import Job
from privacy_gate.progress import Progress
from privacy_gate.registry import pull as registry
from privacy_gate.store import Store
from privacy_gate.verdict.report import Report


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    uri           of the candidate: models:/NAME/VERSION or models:/NAME@ALIAS
    policy        the file of the policy to judge it by
    store         where results are kept: a folder or fsspec URL
    tracking_uri  the MLflow server or database; None: MLflow's own default
    """

    uri: str
    policy: Path
    store: str
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Case:
    """A pinned candidate, its audit data, the policy that will judge it, and the champion where that speaks of one."""

    rules: PolicyInForce
    candidate: Candidate
    data: AuditData
    store: Store
    champion: Champion | None = None

    @property
    def policy(self) -> Policy:
        """The policy that will judge the candidate."""
        return self.rules.policy

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
            self.rules, self.candidate, self.data, self.store.get, now, progress=progress, champion=self.compared
        )


@contextmanager
def open_case(request: Request, now: datetime.datetime) -> Iterator[Case]:
    """Pulls the candidate, and the champion if the policy compares, into a private folder for as long as it is open.

    The policy is read first, and its sha256 noted in the store before anything is measured.
    """
    policy, sha256 = load_policy(request.policy)
    results = Store(request.store)
    with scratch_folder() as folder:
        wanted = any(check.reads_rounds for check in policy.checks)
        candidate = registry.pull(request.uri, folder, request.tracking_uri, rounds=wanted)
        champion = None
        if policy.compares and (promotion := policy.promotion):
            champion = registry.champion_of(candidate, promotion.alias, folder / "champion", request.tracking_uri)
        data = read_data(candidate.dossier.data, candidate.recipe.classes)
        recorded = results.remember(f"policy {sha256} judges {candidate.digest}", now.isoformat(timespec="seconds"))
        rules = PolicyInForce(policy, sha256, str(request.policy), recorded)
        yield Case(rules, candidate, data, results, champion)
