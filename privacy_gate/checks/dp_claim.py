"""Do the candidate's scores contradict the differential privacy it claims? Claims are falsified, never proved."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from privacy_gate.attacks import ATTACKS
from privacy_gate.checks.base.check import Check, Results, Subject
from privacy_gate.checks.base.references import AttackName, gather, reference_jobs
from privacy_gate.dossier.dataset import hashed_ids
from privacy_gate.jobs.kinds import Job
from privacy_gate.metrics.claims import BY_CANARIES, BY_RATES, bounds_by_canaries, bounds_by_rates, excess
from privacy_gate.verdict.judgement import CheckResult, Limit, not_measured

ClaimMetric = Literal["epsilon_bound", "epsilon_excess"]

DELTA = 1e-5
"""The delta of the bounds if the dossier makes no claim."""


class DpClaim(Check):
    """Lower bounds of epsilon, and by how much the largest valid one exceeds the dossier's claim.

    attack    whose scores accuse; its threshold is fixed on one half of the rows and applied to the other
    fpr       false positive rate at which the threshold is fixed
    guesses   share of the canaries to guess on: half of these, with the highest scores, as members, and half, with the
              lowest, as not
    level     probability of calling a true claim false, over all bounds together
    """

    title: ClassVar[str] = "The claim of differential privacy"
    attack_class: ClassVar[str | None] = "membership inference"
    by_references: ClassVar[bool] = True

    check: Literal["dp_claim"] = "dp_claim"
    references: Annotated[int, Field(ge=8, le=10_000)] = 64
    attack: AttackName = "lira"
    fpr: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    guesses: Annotated[float, Field(gt=0, le=1)] = 0.2
    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    limits: Mapping[ClaimMetric, Limit] = {"epsilon_excess": Limit(max=0.0)}

    def jobs(self, subject: Subject) -> list[Job]:
        """The same jobs as a membership check with as many references."""
        return reference_jobs(subject, self.references)

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """One bound per method, and the excess over the claim."""
        evidence = gather(subject, self.references, results)
        delta = subject.claim.delta if subject.claim else DELTA
        if (reason := ATTACKS[self.attack].unmet(evidence)) is not None:
            bounds = [not_measured("epsilon_bound", reason, name) for name in (*BY_RATES, *BY_CANARIES)]
        else:
            scores, canary = ATTACKS[self.attack].score(evidence), subject.data.canary
            level = self.level / (1 if canary is None else 2)  # two valid bounds share the level (Bonferroni)
            # The halves are fixed before any score is computed: by a hash of the id.
            first = np.array([int(name[0], 16) % 2 == 0 for name in hashed_ids(subject.data)])
            fixing, holdout = scores[evidence.holdout & first], scores[evidence.holdout & ~first]
            bounds = bounds_by_rates(fixing, scores[evidence.member & ~first], holdout, self.fpr, delta, level)
            chosen = np.zeros(len(scores), dtype=bool) if canary is None else canary
            bounds += bounds_by_canaries(scores[chosen], evidence.member[chosen], self.guesses, delta, level)
        return CheckResult(measurements=(*bounds, excess(bounds, subject.claim.epsilon if subject.claim else None)))
