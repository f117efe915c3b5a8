"""Measures how much other recipes would leak on this data, and how accurate they would be.

Every alternative is trained and attacked like the recipe itself: reference models are trained on random parts of
the pool, and the strongest attack that the release allows attacks each of them with the help of all the others
(arXiv 2402.06674; on weights of heads, LiRA on the gradient span). Pure functions: they
name jobs and read stored results.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.every_model import EVERY_MODEL
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.leave_one_out import all_models
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.auditing.policy import Policy
from privacy_gate.checks.base.check import Results, Subject
from privacy_gate.checks.base.references import feature_jobs, features, training_of
from privacy_gate.documents import Record
from privacy_gate.dossier.alternatives import Alternative, Family
from privacy_gate.dossier.candidate import Candidate
from privacy_gate.dossier.dataset import Split, hashed_ids
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Job, TrainReference, train_reference
from privacy_gate.metrics.intervals.clustered import left_out_accuracy, left_out_gain
from privacy_gate.metrics.rates import best_fpr, kind_and_fpr
from privacy_gate.metrics.recipe import clustered_tpr, recipe_tpr
from privacy_gate.metrics.vulnerability import vulnerability
from privacy_gate.verdict.judgement import Measurement, Severity, not_measured

RELEASES = (
    Release(outputs="weights"),
    Release(),
    Release(digits=3),
    Release(outputs="top_k", k=1),
    Release(outputs="label"),
)
"""Release surfaces under which the unchanged recipe is measured."""


class Target(Record):
    """A false positive rate, and the policy's limit on the true positive rate at it; None without a limit."""

    fpr: Annotated[float, Field(gt=0, lt=1)]
    limit: float | None = None


@dataclass(frozen=True)
class Trained:
    """Predictions of the M reference models of one alternative on the N rows of the pool, in the table's order.

    phi       (M, N) logit-scaled confidence, nats
    included  (M, N) whether the model was trained on the row
    correct   (M, N) whether the model predicts the row's label
    stays     (N,) whether the alternative keeps the row; dropped rows train no model
    evidence  the whole table, model 0 in the candidate's place; None if the references cannot be judged
    """

    phi: Floats
    included: Bools
    correct: Bools
    stays: Bools
    evidence: MembershipEvidence | None = None


class Row(Record):
    """One line of the table.

    accuracy         on the rows of the whole pool that a reference model was not trained on
    gain             accuracy minus that of the unchanged recipe, paired; None for the unchanged recipe
    leak             true positive rate at each target of the strongest attack that the release allows, on the rows
                     that are kept
    release          what leaves the house, in words; None in older tables: all probabilities
    before           the rate of the same rows under the unchanged recipe; only if rows were dropped. If `leak` is
                     higher, dropping exposed other rows. The dropped rows were selected with the same reference
                     models, so `before` is biased low
    dropped          hashed ids of the rows taken out of the pool before training
    dropped_members  how many of them are members
    meets            whether the whole interval of every rate meets its limit; None if the policy has no limit
    best             whether no other row dominates it: at least as good in accuracy and every rate, better in one
    """

    family: Family
    name: str
    recipe: Recipe
    accuracy: Measurement
    leak: tuple[Measurement, ...]
    release: str | None = None
    gain: Measurement | None = None
    before: tuple[Measurement, ...] = ()
    dropped: tuple[str, ...] = ()
    dropped_members: int = 0
    meets: bool | None = None
    best: bool = False


class Advice(Record):
    """The table, with the unchanged recipe first, and what it was made from.

    choice  the name of the most accurate row that meets every limit; None if no row does
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

    Each comes with the strictest blocking limit on tpr or recipe_tpr at it. rows: size of the pool.
    """
    strictest: dict[float, float | None] = {}
    for check in policy.checks:
        for metric, limit in check.bounds.items():
            # For instance recipe_tpr_at_0.01_fpr: kind recipe_tpr, at a false positive rate of 0.01.
            kind, fpr = kind_and_fpr(metric) or ("", 0.0)
            if not kind.endswith("tpr"):
                continue
            known = strictest.setdefault(fpr, None)
            if kind in ("tpr", "recipe_tpr") and limit.max is not None and limit.severity is Severity.BLOCK:
                strictest[fpr] = limit.max if known is None else min(known, limit.max)
    if not strictest:
        strictest = {best_fpr(rows): None}
    return tuple(Target(fpr=fpr, limit=strictest[fpr]) for fpr in sorted(strictest, reverse=True))


def pool_of(subject: Subject) -> Bools:
    """Which rows of the table reference models may be trained on: members and holdout, (N,)."""
    return np.asarray(subject.data.split != Split.POPULATION)


def reference_rows(subject: Subject) -> int:
    """How many rows a reference model is trained on if no row is dropped: as many as the candidate."""
    return int((subject.data.split == Split.MEMBER).sum())


def dropped_rows(option: Alternative, subject: Subject, as_is: Trained | None) -> tuple[int, ...]:
    """Rows of the table that the alternative drops, ascending: the most vulnerable under the unchanged recipe."""
    if not option.share or as_is is None:
        return ()
    rows = np.flatnonzero(pool_of(subject))
    # A stable sort: ties would otherwise drop other rows on another machine, and change the digests of jobs.
    order = np.argsort(-vulnerability(as_is.phi, as_is.included), kind="stable")
    most_vulnerable = rows[order[: max(1, round(option.share * len(rows)))]]
    return tuple(int(row) for row in np.sort(most_vulnerable))


def jobs(option: Alternative, subject: Subject, references: int, without: tuple[int, ...]) -> list[Job]:
    """Jobs for the features and reference models; the unchanged recipe shares its jobs with the checks."""
    return [*feature_jobs(subject), *_trainings(option, subject, references, without)]


def _trainings(
    option: Alternative, subject: Subject, references: int, without: tuple[int, ...]
) -> list[TrainReference]:
    digest = subject.data.digest
    # References keep the weights that the policy's attacks need, so that each alternative meets the same attacker.
    return [
        train_reference(option.recipe, digest, index, without=without, keeps=subject.keeps)
        for index in range(references)
    ]


def gather(
    option: Alternative, subject: Subject, references: int, without: tuple[int, ...], results: Results
) -> Trained:
    """Stored predictions of the alternative's reference models. Raises StoreError if one is missing."""
    pool = pool_of(subject)
    stored = [results(job) for job in _trainings(option, subject, references, without)]
    phi, included, correct = (np.stack([reference[name][pool] for reference in stored]) for name in _KEPT)
    stays = pool.copy()
    stays[list(without)] = False
    if not np.isfinite(phi[:, stays[pool]]).all():
        return Trained(phi, included, correct, stays[pool])
    return Trained(phi, included, correct, stays[pool], _evidence(option, subject, stored, stays, results))


_KEPT = ("confidence", "included", "correct")


def _evidence(
    option: Alternative,
    subject: Subject,
    stored: Sequence[Mapping[str, NDArray[Any]]],
    stays: Bools,
    results: Results,
) -> MembershipEvidence:
    """The references as evidence, the first in the candidate's place; dropped rows are in no training set."""
    first, others = stored[0], stored[1:]
    split = np.where(stays, np.where(first["included"], Split.MEMBER, Split.HOLDOUT), Split.POPULATION)
    heads = np.stack([reference["head"] for reference in stored]) if "head" in first else None
    spans = np.stack([reference["span"] for reference in stored]) if "span" in first else None
    return MembershipEvidence(
        target=first["confidence"],
        reference=np.stack([reference["confidence"] for reference in others]),
        included=np.stack([reference["included"] for reference in others]),
        label=subject.data.label,
        split=split.astype(np.int8),
        logits=first["logits"],
        features=features(subject, results) if heads is not None else None,
        training=training_of(option.recipe),
        head=None if heads is None else heads[0],
        reference_heads=None if heads is None else heads[1:],
        span=None if spans is None else spans[0],
        reference_span=None if spans is None else spans[1:],
        right=first["correct"],
        reference_right=np.stack([reference["correct"] for reference in others]),
    )


def measure(
    option: Alternative,
    subject: Subject,
    trained: Trained,
    as_is: Trained,
    goals: Sequence[Target],
    confidence: float,
) -> Row:
    """The row of the alternative, without `best`, which depends on all rows."""
    # Dropped rows are not attacked: no reference was trained on them.
    leak = _leaks(trained, trained.stays, goals, subject.release, confidence)
    dropped = np.flatnonzero(pool_of(subject))[~trained.stays]
    names = hashed_ids(subject.data) if len(dropped) else []  # hashing a large table takes a while
    answers = (trained.correct, trained.included)
    changed = option.family != "as-is"
    return Row(
        family=option.family,
        name=option.name,
        recipe=option.recipe,
        accuracy=left_out_accuracy(*answers, confidence),
        gain=left_out_gain(*answers, (as_is.correct, as_is.included), confidence) if changed else None,
        leak=leak,
        release=str(subject.release),
        before=_leaks(as_is, trained.stays, goals, subject.release, confidence) if len(dropped) else (),
        dropped=tuple(names[row] for row in dropped),
        dropped_members=int((subject.data.split[dropped] == Split.MEMBER).sum()),
        meets=_meets(leak, goals),
    )


def measure_releases(
    option: Alternative, subject: Subject, trained: Trained, goals: Sequence[Target], confidence: float
) -> list[Row]:
    """The unchanged recipe's models under every other release: nothing is trained, and accuracy stays."""
    whole = measure(option, subject, trained, trained, goals, confidence)
    rows = []
    for release in RELEASES:
        if release.settings == subject.release.settings:
            continue
        leak = _leaks(trained, trained.stays, goals, release, confidence)
        changed = {"family": "release", "name": str(release), "release": str(release), "leak": leak}
        rows.append(whole.model_copy(update={**changed, "meets": _meets(leak, goals)}))
    return rows


def unmeasured(option: Alternative, goals: Sequence[Target]) -> Row:
    """The row of an alternative that could not be trained, with the reason."""
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
    """The whole table with its best rows marked, and the choice among them."""
    data, table = subject.data, _marked(list(rows))
    # max keeps the first of equals, so the unchanged recipe wins ties.
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
    """The table with its best rows marked: the Pareto front of accuracy and rates."""
    figures = [_figures(row) for row in rows]
    complete = [values for values in figures if values is not None]
    return tuple(
        row.model_copy(update={"best": values is not None and not any(_dominates(other, values) for other in complete)})
        for row, values in zip(rows, figures, strict=True)
    )


def _leaks(
    trained: Trained, rows: NDArray[np.bool_], goals: Sequence[Target], release: Release, confidence: float
) -> tuple[Measurement, ...]:
    """recipe_tpr over the selected rows of the pool (N,): for each goal, of the strongest attack on this release."""
    if trained.evidence is None or not np.isfinite(trained.phi[:, rows]).all():
        reason = "training diverged: predictions are not finite numbers"
        return tuple(not_measured(f"recipe_tpr_at_{goal.fpr:g}_fpr", reason, "lira") for goal in goals)
    seen = view_of(trained.evidence, release)
    phi, included = all_models(seen)
    # Rows of the evidence's pool that are asked for: dropped rows are in no pool of their own alternative.
    chosen = rows[trained.stays]
    tried: dict[str, list[Measurement]] = {}
    for name in ("span_lira", "lira", "label_lira"):
        if ATTACKS[name].unmet(seen) is not None:
            continue
        if name == "lira":
            tried[name] = [recipe_tpr(phi[:, chosen], included[:, chosen], goal.fpr, confidence) for goal in goals]
            continue
        scores = EVERY_MODEL[name](seen)[:, chosen]
        tried[name] = [clustered_tpr(scores, included[:, chosen], goal.fpr, confidence, name) for goal in goals]
    if not tried:
        reason = f"no attack over references can use a release of {release} here"
        return tuple(not_measured(f"recipe_tpr_at_{goal.fpr:g}_fpr", reason) for goal in goals)
    # Any attack that was not measured leaves the worst unknown, so a value of None counts as the worst.
    return tuple(max(same, key=_severity) for same in zip(*tried.values(), strict=True))


def _severity(rate: Measurement) -> float:
    return float("inf") if rate.value is None else rate.value


def _meets(leak: Sequence[Measurement], goals: Sequence[Target]) -> bool | None:
    """Whether the whole interval of every rate meets its limit; a rate that was not measured meets none."""
    limited = [(rate, goal.limit) for rate, goal in zip(leak, goals, strict=True) if goal.limit is not None]
    if not limited:
        return None
    return all(rate.high is not None and rate.high <= limit for rate, limit in limited)


def _figures(row: Row) -> tuple[float, ...] | None:
    """Negated accuracy and the rates, so that smaller is better for each; None if one is missing."""
    values = [row.accuracy.value, *(rate.value for rate in row.leak)]
    known = [value for value in values if value is not None]
    return (-known[0], *known[1:]) if len(known) == len(values) else None


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether the first is nowhere worse than the second and better in at least one figure."""
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))
