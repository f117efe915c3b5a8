"""From a policy and stored results to a report. Only reads the store, so an audit can be repeated on any machine."""

import datetime
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Self

import numpy as np

from privacy_gate.auditing.policy import Policy, PolicyInForce
from privacy_gate.auditing.tiers import Ran, evidence_notes
from privacy_gate.checks import CHECKS, AnyCheck
from privacy_gate.checks.base.check import Results, Subject
from privacy_gate.checks.base.federations import refuse_untrainable, untrainable_references
from privacy_gate.checks.utility import Utility
from privacy_gate.dossier.candidate import Candidate
from privacy_gate.dossier.champion import Champion
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import CommandRecipe, Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.batches import batches
from privacy_gate.jobs.kinds import Job
from privacy_gate.progress import Progress, silent
from privacy_gate.verdict.judgement import CheckResult, not_measured, verdict
from privacy_gate.verdict.report import CandidateRecord, ChampionRecord, CheckRecord, DataRecord, PolicyRecord, Report

VERSIONED = ("numpy", "scipy", "torch", "timm", "mlflow", "pydantic")

THREAT_MODEL = (
    "The attacker sees {released} of the model, and knows its recipe and public backbone.",
    "The attacker knows the pool of possible members: members and holdout. Against an attacker who draws fresh "
    "examples from the population the figures are conservative, by about a factor sqrt(2) in the separation.",
    "The attacker trains reference models by the same recipe, as the audit does.",
)

NOT_TESTED = (
    "reconstruction and model inversion",
    "attribute inference",
    "training-data extraction by prompting or regurgitation",
    "membership inference from gradients that are sent during training",
)


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigurationError(f"--shard {self.index}/{self.count}: write i/n with 1 <= i <= n, for instance 2/4")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard written as `i/n`. Raises ConfigurationError for any other text."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit()):
            raise ConfigurationError(f"--shard {text}: write i/n, for instance 2/4")
        return cls(int(index), int(count))

    def take(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs of this part. Together the parts are all jobs.

        Whole batches go to one part: jobs of a batch are trained together, so sharding does not change a result.
        """
        whole = list(jobs)
        turns = {job: turn for turn, batch in enumerate(batches(whole)) for job in batch}
        # Batches are dealt out in turn, so that every part gets its share of each kind of job.
        return [job for job in whole if turns[job] % self.count == self.index - 1]


def checks_of(policy: Policy) -> list[AnyCheck]:
    """The policy's checks; utility always runs, if only as a sanity check without limits."""
    # A useless model leaks nothing, so every report shows the accuracy next to the leak.
    named: list[AnyCheck] = list(policy.checks)
    return named if any(isinstance(check, Utility) for check in named) else [*named, Utility()]


def subject_of(candidate: Candidate, data: AuditData, policy: Policy, champion: Champion | None = None) -> Subject:
    """Everything that the checks may know about the candidate, and about the champion it is compared with.

    Raises ConfigurationError if the recipe needs a trainer and the policy names none, and DatasetError if the
    federation of the dossier cannot have been trained on this data.
    """
    # A federation that cannot exist on this data is refused now, not after hours of computing.
    refuse_untrainable(candidate.recipe, data)
    table = candidate.dossier.data.table.uri
    if policy.trainer is None and candidate.recipe.adaptation == "command":
        raise ConfigurationError(
            "the recipe says adaptation 'command': name the program that trains references in the policy, "
            "trainer: {command: [python, /path/to/train.py]}"
        )
    return Subject(
        recipe=_with_trainer(candidate.recipe, table, policy),
        artifact=candidate.digest,
        data=data,
        logged=candidate.logged,
        claim=candidate.dossier.claim,
        rounds=candidate.rounds_digest,
        champion=_readable(champion, table, policy),
        release=policy.surface,
        keeps=policy.keeps(candidate.recipe),
    )


def _readable(champion: Champion | None, table: str, policy: Policy) -> Champion | None:
    """The champion with the policy's trainer, if a program must read its files.

    Without a trainer in the policy such a champion cannot be compared, and carries that reason.
    """
    if champion is None or champion.recipe is None:
        return champion
    # Unlike for the candidate, this is no error: only the limits relative to the champion lose their figure.
    if policy.trainer is None and champion.recipe.adaptation == "command":
        return champion.refused("its recipe says adaptation 'command', and the policy names no trainer to read it with")
    return replace(champion, recipe=_with_trainer(champion.recipe, table, policy))


def _with_trainer(recipe: Recipe, table: str, policy: Policy) -> Recipe:
    """The recipe; for adaptation `command`, with the trainer that the policy names.

    The program never comes from the candidate: the gate would run code of the model that it judges.
    """
    if recipe.adaptation != "command" or policy.trainer is None:
        return recipe
    return CommandRecipe(
        **{name: getattr(recipe, name) for name in Recipe.model_fields}, trainer=policy.trainer, table=table
    )


def plan(policy: Policy, candidate: Candidate, data: AuditData, champion: Champion | None = None) -> list[Job]:
    """Every job that the policy's checks need, each once, in the same order on every machine.

    If some references of a check cannot be trained, none of its jobs are listed.
    """
    subject = subject_of(candidate, data, policy, champion)
    # Checks share jobs, above all reference models: dict.fromkeys keeps the first of each, in order.
    jobs_of_checks = (check.jobs(subject) for check in checks_of(policy))
    return list(dict.fromkeys(job for jobs in jobs_of_checks if not untrainable_references(data, jobs) for job in jobs))


def audit(
    rules: PolicyInForce,
    candidate: Candidate,
    data: AuditData,
    results: Results,
    now: datetime.datetime,
    *,
    progress: Progress = silent,
    champion: Champion | None = None,
) -> Report:
    """Measures, judges and reports, from stored results alone.

    champion  the version promoted now, if the policy has limits relative to it

    Raises UndecidedError if a result is missing, EvidenceError if results cannot be judged.
    """
    policy = rules.policy
    subject = subject_of(candidate, data, policy, champion)
    ran = _measured(policy, subject, results, progress)
    findings = [finding for check, result in ran for finding in policy.judge(candidate.name, check, result, now.date())]
    decided = verdict(findings, (control for _, result in ran for control in result.controls))
    return Report(
        created=now.isoformat(timespec="seconds"),
        tool=f"privacy-gate {metadata.version('privacy-gate')}",
        versions=_versions(),
        candidate=_identify(candidate),
        policy=_cite(rules),
        recipe=candidate.recipe,
        data=_describe(data),
        checks=tuple(_record(check, result) for check, result in ran),
        findings=tuple(findings),
        verdict=decided,
        exit_code=decided.exit_code,
        # Without attacks by reference models there is no such attacker to describe.
        threat_model=_threat_model(policy) if any(check.by_references for check, _ in ran) else (),
        not_tested=(*NOT_TESTED, *_untested(candidate.recipe, [check for check, _ in ran])),
        notes=(
            *policy.idle_waivers(candidate.name, findings, now.date()),
            *evidence_notes(subject, ran),
            *_remarked(subject.champion),
        ),
        claim=candidate.dossier.claim,
        champion=_pin(subject.champion),
    )


def _measured(policy: Policy, subject: Subject, results: Results, progress: Progress) -> list[Ran]:
    """Every check with its result.

    For each limit of a check the result has a measurement, a reason why there is none, or an entry in `left_out`.
    """
    checks, ran = checks_of(policy), list[Ran]()
    for done, check in enumerate(checks):
        progress("audit", done, len(checks))
        if reason := untrainable_references(subject.data, check.jobs(subject)):
            result = _unmeasured(check, reason)
        else:
            result = check.measure(subject, results, policy.confidence)
        ran.append((check, result.complete(check.bounds)))
    progress("audit", len(checks), len(checks))
    return ran


def _unmeasured(check: AnyCheck, reason: str) -> CheckResult:
    # One entry per limit, so that each limit becomes a finding, which cannot be met.
    missing = tuple(not_measured(metric, reason) for metric in check.bounds)
    return CheckResult(measurements=missing, notes=(f"{check.name} measured nothing: {reason}",))


def _record(check: AnyCheck, result: CheckResult) -> CheckRecord:
    # Limits are in the findings already; the other settings explain how the figures were made.
    settings = check.model_dump(mode="json", exclude={"check", "limits"})
    return CheckRecord(check=check.name, settings=settings, result=result)


def _threat_model(policy: Policy) -> tuple[str, ...]:
    return tuple(line.format(released=policy.surface) for line in THREAT_MODEL)


def _cite(rules: PolicyInForce) -> PolicyRecord:
    policy = rules.policy
    return PolicyRecord(
        name=policy.name,
        version=policy.version,
        source=rules.source,
        sha256=rules.sha256,
        recorded=rules.recorded,
        release_context=policy.surface.context,
        release=policy.surface.model_dump(mode="json", exclude_none=True),
        released=str(policy.surface),
        confidence=policy.confidence,
        alias=policy.promotion.alias if policy.promotion else None,
    )


def _pin(champion: Champion | None) -> ChampionRecord | None:
    if champion is None:
        return None
    return ChampionRecord(
        alias=champion.alias, version=champion.version, digest=champion.artifact, reason=champion.reason
    )


def _remarked(champion: Champion | None) -> list[str]:
    if champion is None or champion.remark is None:
        return []
    return [f"champion, version {champion.version}: {champion.remark}"]


def _untested(recipe: Recipe, checks: Iterable[AnyCheck]) -> list[str]:
    """Topics that no check of the policy covers, as far as they apply to such a candidate."""
    covered = {type(check) for check in checks}
    # A policy with checks of federations expects one. A dossier that declares none must not shorten the list of
    # topics that were not tested.
    federated = recipe.federation is not None or any(kind.federated for kind in covered)
    absent = [kind for kind in CHECKS.values() if kind not in covered and (federated or not kind.federated)]
    return [kind.left_open for kind in sorted(absent, key=lambda kind: kind.federated) if kind.left_open]


def _identify(candidate: Candidate) -> CandidateRecord:
    return CandidateRecord(
        uri=candidate.uri,
        name=candidate.name,
        version=candidate.version,
        alias=candidate.alias,
        run_id=candidate.run_id,
        model_id=candidate.model_id,
        digest=candidate.digest,
    )


def _describe(data: AuditData) -> DataRecord:
    counts = np.unique(data.label[data.split == Split.MEMBER], return_counts=True)[1]
    groups: Mapping[str, int] | None = None
    if data.group is not None:
        groups = {str(name): int(count) for name, count in zip(*np.unique(data.group, return_counts=True), strict=True)}
    return DataRecord(
        sha256=data.digest,
        members=int((data.split == Split.MEMBER).sum()),
        holdout=int((data.split == Split.HOLDOUT).sum()),
        population=int((data.split == Split.POPULATION).sum()),
        classes=len(np.unique(data.label)),
        fewest_members_per_class=int(counts.min()),
        median_members_per_class=float(np.median(counts)),
        groups=groups,
        clients=None if data.client is None else len(np.unique(data.client)),
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an audit needs no torch or timm
            continue
    return versions
