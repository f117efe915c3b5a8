"""What other recipes would leak on this data, and what they would cost: alternatives, measured, not preached.

Every alternative is trained and attacked as the recipe itself is: references on shares of the pool, each in
turn the target of LiRA by all the others (arXiv 2402.06674). Pure: jobs out, stored results in.
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privacy_gate.arrays import Bools, Floats
from privacy_gate.auditing.policy import Policy
from privacy_gate.checks.base.check import Results, Subject
from privacy_gate.checks.base.references import feature_jobs
from privacy_gate.documents import Record
from privacy_gate.dossier.alternatives import Alternative, Family
from privacy_gate.dossier.candidate import Candidate
from privacy_gate.dossier.dataset import Split, hashed_ids
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Job, TrainReference, train_reference
from privacy_gate.metrics.intervals.clustered import left_out_accuracy, left_out_gain
from privacy_gate.metrics.rates import best_fpr, kind_and_fpr
from privacy_gate.metrics.recipe import recipe_tpr
from privacy_gate.metrics.vulnerability import vulnerability
from privacy_gate.verdict.judgement import Measurement, Severity, not_measured


class Target(Record):
    """A false positive rate, and the most that the policy lets the true positive rate be there."""

    fpr: Annotated[float, Field(gt=0, lt=1)]
    limit: float | None = None


@dataclass(frozen=True)
class Trained:
    """What M references of one alternative say about the N rows of the pool, in the table's order; all (M, N).

    phi       logit-scaled confidence, nats
    included  rows each was trained on
    correct   rows each is right about
    stays     (N,) rows that some reference may be trained on
    """

    phi: Floats
    included: Bools
    correct: Bools
    stays: Bools


class Row(Record):
    """One line of the table.

    dropped   hashed ids of rows taken out of the pool before training; dropped_members: how many are members
    accuracy  on rows of the whole pool that a reference was not trained on
    gain      of accuracy over the recipe as it is, paired; None for that recipe
    leak      LiRA's true positive rate at each target, over rows that stay
    before    the same rows' rate under the recipe as it is, where rows were dropped: dropping them exposes
              others where `leak` is above it. They were chosen by the same references, which flatters it
    meets     whether every limit holds at the unfavourable end; None where the policy has none
    best      no other alternative is as accurate and leaks as little, by the estimates, and is better in one
    """

    family: Family
    name: str
    recipe: Recipe
    accuracy: Measurement
    leak: tuple[Measurement, ...]
    gain: Measurement | None = None
    before: tuple[Measurement, ...] = ()
    dropped: tuple[str, ...] = ()
    dropped_members: int = 0
    meets: bool | None = None
    best: bool = False


class Advice(Record):
    """The table, the recipe as it is first, and what it was made from.

    choice  the name of the most accurate row that meets every limit; None where none does
    """

    format: Literal[1] = 1
    created: str
    tool: str
    uri: str
    model: str
    version: str
    digest: str
    policy: str
    policy_sha256: str
    data_sha256: str
    confidence: float
    references: int
    members: int
    holdout: int
    targets: tuple[Target, ...]
    rows: tuple[Row, ...]
    choice: str | None = None


def targets(policy: Policy, rows: int) -> tuple[Target, ...]:
    """The false positive rates at which the policy limits membership inference, highest first.

    Each with its strictest limit on tpr or recipe_tpr that blocks; rows: of the pool.
    """
    found: dict[float, float | None] = {}
    for check in policy.checks:
        for metric, limit in check.bounds.items():
            kind, fpr = kind_and_fpr(metric) or ("", 0.0)
            if not kind.endswith("tpr"):
                continue
            known = found.setdefault(fpr, None)
            if kind in ("tpr", "recipe_tpr") and limit.max is not None and limit.severity is Severity.BLOCK:
                found[fpr] = limit.max if known is None else min(known, limit.max)
    if not found:
        found = {best_fpr(rows): None}
    return tuple(Target(fpr=fpr, limit=found[fpr]) for fpr in sorted(found, reverse=True))


def pool_of(subject: Subject) -> Bools:
    """Rows that references may be trained on, (N,)."""
    return np.asarray(subject.data.split != Split.POPULATION)


def reference_rows(subject: Subject) -> int:
    """How many rows a reference is trained on, where none is dropped: as many as the candidate."""
    return int((subject.data.split == Split.MEMBER).sum())


def dropped_rows(option: Alternative, subject: Subject, as_is: Trained | None) -> tuple[int, ...]:
    """Rows of the table that the alternative drops, ascending: those most vulnerable under the recipe as it is."""
    if not option.share or as_is is None:
        return ()
    rows = np.flatnonzero(pool_of(subject))
    order = np.argsort(-vulnerability(as_is.phi, as_is.included), kind="stable")
    chosen = rows[order[: max(1, round(option.share * len(rows)))]]
    return tuple(int(row) for row in np.sort(chosen))


def jobs(option: Alternative, subject: Subject, references: int, without: tuple[int, ...]) -> list[Job]:
    """Features and references of the alternative; the recipe as it is shares those of the checks."""
    return [*feature_jobs(subject), *_trainings(option, subject, references, without)]


def _trainings(
    option: Alternative, subject: Subject, references: int, without: tuple[int, ...]
) -> list[TrainReference]:
    digest = subject.data.digest
    return [train_reference(option.recipe, digest, index, without=without) for index in range(references)]


def gather(
    option: Alternative, subject: Subject, references: int, without: tuple[int, ...], results: Results
) -> Trained:
    """What the alternative's stored references say. Raises StoreError where one is missing."""
    pool = pool_of(subject)
    stored = [results(job) for job in _trainings(option, subject, references, without)]
    phi, included, correct = (np.stack([each[name][pool] for each in stored]) for name in _KEPT)
    stays = pool.copy()
    stays[list(without)] = False
    return Trained(phi, included, correct, stays[pool])


_KEPT = ("confidence", "included", "correct")


def measure(
    option: Alternative,
    subject: Subject,
    trained: Trained,
    as_is: Trained,
    goals: Sequence[Target],
    confidence: float,
) -> Row:
    """The alternative's line, but for what only the whole table tells."""
    leak = tuple(_leak(trained, trained.stays, goal.fpr, confidence) for goal in goals)
    dropped = np.flatnonzero(pool_of(subject))[~trained.stays]
    names = hashed_ids(subject.data) if len(dropped) else []
    own = (trained.correct, trained.included)
    other = option.family != "as-is"
    return Row(
        family=option.family,
        name=option.name,
        recipe=option.recipe,
        accuracy=left_out_accuracy(*own, confidence),
        gain=left_out_gain(*own, (as_is.correct, as_is.included), confidence) if other else None,
        leak=leak,
        before=tuple(_leak(as_is, trained.stays, goal.fpr, confidence) for goal in goals) if len(dropped) else (),
        dropped=tuple(names[row] for row in dropped),
        dropped_members=int((subject.data.split[dropped] == Split.MEMBER).sum()),
        meets=_meets(leak, goals),
    )


def unmeasured(option: Alternative, goals: Sequence[Target]) -> Row:
    """The line of an alternative that could not be trained."""
    return Row(
        family=option.family,
        name=option.name,
        recipe=option.recipe,
        accuracy=not_measured("left_out_accuracy", option.reason),
        gain=not_measured("left_out_accuracy_gain", option.reason),
        leak=tuple(not_measured(f"recipe_tpr_at_{goal.fpr:g}_fpr", option.reason, "lira") for goal in goals),
        meets=False if any(goal.limit is not None for goal in goals) else None,
    )


def advice(
    candidate: Candidate,
    policy: Policy,
    policy_sha256: str,
    subject: Subject,
    references: int,
    rows: Iterable[Row],
    now: datetime.datetime,
) -> Advice:
    """The whole table, its best lines marked."""
    data, table = subject.data, _marked(list(rows))
    meeting = [row for row in table if row.meets]
    choice = max(meeting, key=lambda row: row.accuracy.value or 0.0, default=None)
    return Advice(
        created=now.isoformat(timespec="seconds"),
        tool=f"privacy-gate {metadata.version('privacy-gate')}",
        uri=candidate.uri,
        model=candidate.name,
        version=candidate.version,
        digest=candidate.digest,
        policy=f"{policy.name} version {policy.version}",
        policy_sha256=policy_sha256,
        data_sha256=data.digest,
        confidence=policy.confidence,
        references=references,
        members=int((data.split == Split.MEMBER).sum()),
        holdout=int((data.split == Split.HOLDOUT).sum()),
        targets=targets(policy, int(pool_of(subject).sum())),
        rows=table,
        choice=choice.name if choice else None,
    )


def _marked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The table with its best lines marked: those that no other dominates."""
    figures = [_figures(row) for row in rows]
    known = [own for own in figures if own is not None]
    return tuple(
        row.model_copy(update={"best": own is not None and not any(_dominates(other, own) for other in known)})
        for row, own in zip(rows, figures, strict=True)
    )


def _leak(trained: Trained, rows: NDArray[np.bool_], fpr: float, confidence: float) -> Measurement:
    """recipe_tpr over these rows (N,)."""
    phi = trained.phi[:, rows]
    if not np.isfinite(phi).all():
        return not_measured(f"recipe_tpr_at_{fpr:g}_fpr", "training diverged: answers are no finite numbers", "lira")
    return recipe_tpr(phi, trained.included[:, rows], fpr, confidence)


def _meets(leak: Sequence[Measurement], goals: Sequence[Target]) -> bool | None:
    """Whether every limit holds at the unfavourable end of the interval; what was not measured meets none."""
    bounded = [(found, goal.limit) for found, goal in zip(leak, goals, strict=True) if goal.limit is not None]
    if not bounded:
        return None
    return all(found.high is not None and found.high <= limit for found, limit in bounded)


def _figures(row: Row) -> tuple[float, ...] | None:
    """Accuracy and rates as figures of which smaller is better; None where one is missing."""
    values = [row.accuracy.value, *(found.value for found in row.leak)]
    known = [value for value in values if value is not None]
    return (-known[0], *known[1:]) if len(known) == len(values) else None


def _dominates(theirs: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return theirs != own and all(a <= b for a, b in zip(theirs, own, strict=True))
