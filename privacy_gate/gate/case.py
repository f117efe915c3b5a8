"""The case to decide: a candidate, the policy that judges it and the audit data, pulled while it is open."""

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
    """A pinned candidate, its audit data, the policy that judges it, and the champion if the policy compares to it."""

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
        """The champion. If computing with it failed before, it carries the reason why it cannot be compared."""
        if self.champion is None or self.champion.reason or not (refusal := self.store.recall(self._refusal)):
            return self.champion
        return self.champion.refused(refusal)

    @property
    def jobs(self) -> list[Job]:
        """Every job that the verdict needs, computed already or not."""
        return plan(self.policy, self.candidate, self.data, self.compared)

    def of_champion(self, job: Job) -> bool:
        """Whether the job reads the files of the champion instead of the candidate's."""
        # A champion with the same files as the candidate needs no jobs of its own.
        artifact = None if self.champion is None else self.champion.artifact
        return artifact not in (None, self.candidate.digest) and getattr(job, "artifact", None) == artifact

    def refuse_champion(self, reason: str) -> None:
        """Notes in the store that computing with the champion failed, which must not count against the candidate."""
        self.store.remember(self._refusal, reason)

    @property
    def _refusal(self) -> str:
        # A key in the store: another wording would forget refusals that were noted before.
        return f"champion {self.champion.artifact if self.champion else None} fails on {self.data.digest}"

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs whose results are not in the store."""
        return self.store.missing(jobs)

    def audit(self, now: datetime.datetime, progress: Progress) -> Report:
        """The report, from stored results alone. Raises UndecidedError if one is missing."""
        if missing := self.missing(self.jobs):
            kinds = ", ".join(
                f"{count} {kind}" for kind, count in Counter(type(job).__name__ for job in missing).items()
            )
            raise UndecidedError(
                f"store {self.store.root}: {len(missing)} of {len(self.jobs)} results are missing ({kinds}): run "
                "`prepare` first, every shard"
            )
        return audit(
            self.rules, self.candidate, self.data, self.store.get, now, progress=progress, champion=self.compared
        )


@contextmanager
def open_case(request: Request, now: datetime.datetime) -> Iterator[Case]:
    """Pulls the candidate, and the champion if the policy compares with it, into a private temporary folder.

    The policy is read first and its sha256 is noted in the store before anything is measured: the report can then
    show that the limits were fixed before the results.
    """
    policy, sha256 = load_policy(request.policy)
    results = Store(request.store)
    with scratch_folder() as folder:
        # A round log can be much larger than the model: it is only downloaded for checks that read it.
        rounds = any(check.reads_rounds for check in policy.checks)
        candidate = registry.pull(request.uri, folder, request.tracking_uri, rounds=rounds)
        champion = None
        if policy.compares and (promotion := policy.promotion):
            champion = registry.champion_of(candidate, promotion.alias, folder / "champion", request.tracking_uri)
        data = read_data(candidate.dossier.data, candidate.recipe.classes)
        recorded = results.remember(f"policy {sha256} judges {candidate.digest}", now.isoformat(timespec="seconds"))
        rules = PolicyInForce(policy, sha256, str(request.policy), recorded)
        yield Case(rules, candidate, data, results, champion)
