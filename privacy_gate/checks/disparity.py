"""Are some classes, groups or clients more exposed than others? One threshold for all, as in Kulynych et al. 2022."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from privacy_gate.arrays import Floats, Names
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.checks.base.check import Check, Results, Subject
from privacy_gate.checks.base.references import AttackName, gather, reference_jobs
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.jobs.kinds import Job
from privacy_gate.metrics.parties.disparity import (
    Accusations,
    accusations,
    disparity_tests,
    group_vulnerability,
    vulnerability_gap,
)
from privacy_gate.metrics.parties.groups import disparate_mia
from privacy_gate.metrics.rates import BEST, best_fpr, needed_holdout
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

DisparityMetric = Literal[
    "vulnerability", "vulnerability_gap", "disparity_p_value", "disparate_mia", "disparate_mia_p_value"
]

EVERYWHERE: tuple[DisparityMetric, ...] = ("vulnerability", "vulnerability_gap", "disparity_p_value")
"""Measured for classes, groups and clients."""

OF_PEOPLE: tuple[DisparityMetric, ...] = ("disparate_mia", "disparate_mia_p_value")
"""Measured for groups and clients only: classes need not be learnt equally fast."""

NO_PEOPLE = "needs groups or clients: add columns: {group: ..., client: ...} to the manifest, and list them in `by`"

Partition = Literal["class", "group", "client"]

PLURAL: dict[Partition, str] = {"class": "classes", "group": "groups", "client": "clients"}


class Disparity(Check):
    """V_g = P(accused | member of g) - P(accused | holdout of g) for every class, declared group and client; and
    disparate_mia, the largest difference of P(accused | member) between two groups, or two clients.

    A limit {max: .02} on disparate_mia demands evidence that no gap is larger, which takes thousands of members. A
    limit {min: .01} on disparate_mia_p_value only demands that these members show no significant gap.

    A group with members and no holdout row is not ignored: its own figures are not measured, and neither is the
    vulnerability_gap between it and others.

    attack        the attack, from ATTACKS, whose scores are compared with the threshold
    fpr           false positive rate of the one threshold, over all holdout rows; `best`: .01 if the holdout resolves
                  it, else .1
    by            how to group rows; the default is by class, and by group and client if the table has those columns
    permutations  shuffles of the test whether sampling noise alone sets groups so far apart
    """

    title: ClassVar[str] = "Exposure of classes, groups and clients"
    attack_class: ClassVar[str | None] = "membership inference"
    by_references: ClassVar[bool] = True

    check: Literal["disparity"] = "disparity"
    references: Annotated[int, Field(ge=8, le=10_000)] = 64
    attack: AttackName = "lira"
    fpr: Literal["best"] | Annotated[float, Field(gt=0, lt=1)] = "best"
    by: Annotated[tuple[Partition, ...], Field(min_length=1)] | None = None
    permutations: Annotated[int, Field(ge=99, le=100_000)] = 1999
    limits: Mapping[DisparityMetric, Limit] = Field(default_factory=dict)

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """The rows that resolve the threshold's false positive rate, or the larger rate that `best` falls back on.

        No more are required: members may be divided among groups so that even these rows show any gap to be small.
        """
        return dict.fromkeys(self.limits, needed_holdout(BEST[-1] if self.fpr == "best" else self.fpr))

    def jobs(self, subject: Subject) -> list[Job]:
        """The same jobs as a membership check with as many references."""
        return reference_jobs(subject, self.references)

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """For classes, groups and clients: V_g, its largest distance from V of all, gaps of TPR, and p-values."""
        evidence = gather(subject, self.references, results)
        if (reason := self._unmet(evidence)) is not None:
            return CheckResult(measurements=tuple(not_measured(metric, reason) for metric in get_args(DisparityMetric)))
        scores = ATTACKS[self.attack].score(evidence)
        everyone = self._accused(evidence, scores, np.full(len(scores), "all"))
        measurements = self._labelled(group_vulnerability(everyone, confidence), evidence)
        asked = self.by or _declared(subject.data)
        for partition in asked:
            names = _names(subject.data, partition)
            if names is None:
                reason = (
                    f"the audit table has no {PLURAL[partition]}: add columns: {{{partition}: ...}} to the manifest"
                )
                measurements += [not_measured(metric, reason, partition) for metric in (*EVERYWHERE, *OF_PEOPLE)]
            else:
                accused = self._accused(evidence, scores, names)
                measurements += self._labelled(self._of(partition, accused, subject.data.digest, confidence), evidence)
        if set(asked) == {"class"}:
            measurements += [not_measured(metric, NO_PEOPLE) for metric in OF_PEOPLE]
        return CheckResult(measurements=tuple(measurements))

    def rate(self, evidence: MembershipEvidence) -> float:
        """The false positive rate of the threshold."""
        if self.fpr != "best":
            return float(self.fpr)
        return best_fpr(int(evidence.holdout.sum()))

    def _unmet(self, evidence: MembershipEvidence) -> str | None:
        needed, holdout = needed_holdout(self.rate(evidence)), int(evidence.holdout.sum())
        if holdout < needed:
            return f"needs n >= {needed:,} holdout rows at fpr {self.rate(evidence):g}, found {holdout:,}"
        return ATTACKS[self.attack].unmet(evidence)

    def _of(self, partition: Partition, accused: Accusations, digest: str, confidence: float) -> list[Measurement]:
        # Seeded with the data and the partition, so that a repeated audit gives the same p-values.
        rng = np.random.default_rng([int(digest[:16], 16), get_args(Partition).index(partition)])
        measurements = [
            *group_vulnerability(accused, confidence, partition),
            vulnerability_gap(accused, confidence, PLURAL[partition]),
            *disparity_tests(accused, self.permutations, confidence, rng, partition),
        ]
        if partition == "class":
            return measurements
        return [*measurements, *disparate_mia(accused, self.permutations, confidence, rng, PLURAL[partition])]

    def _accused(self, evidence: MembershipEvidence, scores: Floats, names: Names) -> Accusations:
        """Which members and holdout rows of each group are above the one threshold."""
        member, holdout = evidence.member, evidence.holdout
        return accusations(scores[member], scores[holdout], names[member], names[holdout], self.rate(evidence))

    def _labelled(self, measurements: Iterable[Measurement], evidence: MembershipEvidence) -> list[Measurement]:
        """The measurements with the attack and the rate added to their samples."""
        label = f"{self.attack} at fpr {self.rate(evidence):g}; "
        return [
            one.model_copy(update={"samples": label + one.samples}) if one.measured else one for one in measurements
        ]


def _declared(data: AuditData) -> tuple[Partition, ...]:
    """The ways in which the table's columns group its rows."""
    partitions: list[Partition] = ["class"]
    partitions += ["group"] if data.group is not None else []
    partitions += ["client"] if data.client is not None else []
    return tuple(partitions)


def _names(data: AuditData, partition: Partition) -> Names | None:
    """Each row's class, group or client as text (N,), with classes zero-padded to sort as numbers; None if absent."""
    if partition == "class":
        return np.char.zfill(data.label.astype(np.str_), len(str(data.label.max())))
    return data.group if partition == "group" else data.client
