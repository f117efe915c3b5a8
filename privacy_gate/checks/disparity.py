"""Are some classes, groups or clients more exposed than others? One threshold, as Kulynych et al. 2022 ask."""

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
"""Measured for groups and clients alone: nobody asks that classes be learnt equally fast."""

NO_PEOPLE = "needs groups or clients: add columns: {group: ..., client: ...} to the manifest, and ask by them"

Partition = Literal["class", "group", "client"]

PLURAL: dict[Partition, str] = {"class": "classes", "group": "groups", "client": "clients"}


class Disparity(Check):
    """V_g = P(accused | member of g) - P(accused | holdout of g) for every class, declared group and client; and
    disparate_mia, the largest difference of P(accused | member) between two groups, or two clients.

    A limit {max: .02} on disparate_mia asks for evidence that no gap is larger, which takes thousands of members;
    {min: .01} on disparate_mia_p_value only that these members show none.

    Whoever has members and no holdout row is not passed over: its own figures are not measured, nor is the
    vulnerability_gap between it and others.

    attack        from ATTACKS, whose scores of the candidate accuse
    fpr           of the one threshold, over all holdout rows; `best`: .01 where the holdout resolves it, else .1
    by            what rows are grouped by; not given: by class, and by group and client where the table declares them
    permutations  shuffles of the tests whether chance alone sets groups so far apart
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
        """What resolves the threshold's false positive rate, or the larger one that `best` falls back on.

        More is not asked for: groups may have such shares of the members that any gap is seen to be small.
        """
        return dict.fromkeys(self.limits, needed_holdout(BEST[-1] if self.fpr == "best" else self.fpr))

    def jobs(self, subject: Subject) -> list[Job]:
        """Those of the membership check with as many references."""
        return reference_jobs(subject, self.references)

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """For classes, groups and clients V_g, its largest distance from everyone's V, gaps of TPR, and p-values."""
        evidence = gather(subject, self.references, results)
        if (reason := self._unmet(evidence)) is not None:
            return CheckResult(measurements=tuple(not_measured(metric, reason) for metric in get_args(DisparityMetric)))
        scores = ATTACKS[self.attack].score(evidence)
        everyone = self._accused(evidence, scores, np.full(len(scores), "all"))
        measurements = self._told(group_vulnerability(everyone, confidence), evidence)
        asked = self.by or _declared(subject.data)
        for partition in asked:
            names = _names(subject.data, partition)
            if names is None:
                reason = f"the audit table declares no {PLURAL[partition]}"
                measurements += [not_measured(metric, reason, partition) for metric in (*EVERYWHERE, *OF_PEOPLE)]
            else:
                found = self._accused(evidence, scores, names)
                measurements += self._told(self._of(partition, found, subject.data.digest, confidence), evidence)
        if set(asked) == {"class"}:
            measurements += [not_measured(metric, NO_PEOPLE) for metric in OF_PEOPLE]
        return CheckResult(measurements=tuple(measurements))

    def rate(self, evidence: MembershipEvidence) -> float:
        """The false positive rate of the threshold."""
        if self.fpr != "best":
            return float(self.fpr)
        return best_fpr(int(evidence.holdout.sum()))

    def _unmet(self, evidence: MembershipEvidence) -> str | None:
        needed, found = needed_holdout(self.rate(evidence)), int(evidence.holdout.sum())
        if found < needed:
            return f"needs n >= {needed:,} holdout rows at fpr {self.rate(evidence):g}, found {found:,}"
        return ATTACKS[self.attack].unmet(evidence)

    def _of(self, partition: Partition, found: Accusations, digest: str, confidence: float) -> list[Measurement]:
        # Keyed by the data and the partition, so that an audit that is repeated says the same.
        rng = np.random.default_rng([int(digest[:16], 16), get_args(Partition).index(partition)])
        measurements = [
            *group_vulnerability(found, confidence, partition),
            vulnerability_gap(found, confidence, PLURAL[partition]),
            *disparity_tests(found, self.permutations, confidence, rng, partition),
        ]
        if partition == "class":
            return measurements
        return [*measurements, *disparate_mia(found, self.permutations, confidence, rng, PLURAL[partition])]

    def _accused(self, evidence: MembershipEvidence, scores: Floats, names: Names) -> Accusations:
        """Who of each group is accused at the one threshold."""
        member, holdout = evidence.member, evidence.holdout
        return accusations(scores[member], scores[holdout], names[member], names[holdout], self.rate(evidence))

    def _told(self, measurements: Iterable[Measurement], evidence: MembershipEvidence) -> list[Measurement]:
        """Measurements that say by which attack and at which rate."""
        told = f"{self.attack} at fpr {self.rate(evidence):g}; "
        return [one.model_copy(update={"samples": told + one.samples}) if one.measured else one for one in measurements]


def _declared(data: AuditData) -> tuple[Partition, ...]:
    """What the table groups its rows by."""
    found: list[Partition] = ["class"]
    found += ["group"] if data.group is not None else []
    found += ["client"] if data.client is not None else []
    return tuple(found)


def _names(data: AuditData, partition: Partition) -> Names | None:
    """Each row's class, group or client as text (N,), classes so that they sort as numbers do; None without."""
    if partition == "class":
        return np.char.zfill(data.label.astype(np.str_), len(str(data.label.max())))
    return data.group if partition == "group" else data.client
