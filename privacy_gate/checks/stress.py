"""Does the recipe's federation withstand failures without an attacker: very different, absent and late clients?"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from privacy_gate.checks.base.check import NO_FEDERATION, Results, Subject, WhereDeclared
from privacy_gate.checks.base.federations import NOT_SIMULATED, Federations
from privacy_gate.checks.base.references import feature_jobs
from privacy_gate.dossier.federation import Federation
from privacy_gate.jobs.kinds import Federate, Job, Stress
from privacy_gate.metrics.robustness import needed_holdout
from privacy_gate.verdict.judgement import CheckResult, Limit, not_measured

StressMetric = Literal["heterogeneity_drop", "gone_drop", "absent_drop", "stale_drop"]

EVEN = 100.0
"""alpha of clients that hold nearly the same distribution."""

Share = Annotated[float, Field(gt=0, lt=1)]


class SystemStress(WhereDeclared):
    """Holdout accuracy that a federation of the recipe loses under stress (arXiv 2402.01857: exacerbated
    out-of-distribution resilience, and system failures of federated learning).

    heterogeneity_drop  from nearly equal clients (alpha 100) to very different ones (alpha `uneven`)
    gone_drop    if a share `gone` of the clients never takes part
    absent_drop  if a share `absent` of the clients, drawn anew in each round, does not answer
    stale_drop   if a share `stale` of each round's updates arrives a round late

    clients, alpha  of the federations for the last three: see robustness; seeds: federations of each kind
    required  see WhereDeclared
    """

    title: ClassVar[str] = "The federation under stress"
    left_open: ClassVar[str | None] = "the federation with absent, late and very different clients"
    federated: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    check: Literal["system_stress"] = "system_stress"
    clients: Literal["recipe"] | Annotated[int, Field(ge=4, le=1000)] = 10
    alpha: Annotated[float, Field(gt=0)] = 0.5
    uneven: Annotated[float, Field(gt=0, lt=EVEN)] = 0.1
    gone: Share = 0.3
    absent: Share = 0.3
    stale: Share = 0.2
    seeds: Annotated[int, Field(ge=3, le=100)] = 5
    limits: Mapping[StressMetric, Limit] = Field(default_factory=dict)

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """Rows if nothing is lost."""
        return needed_holdout(self.bounds, self.seeds, confidence)

    def jobs(self, subject: Subject) -> list[Job]:
        """Every federation, with and without stress; empty for a recipe without a federation."""
        federation = subject.recipe.federation
        if federation is None or subject.recipe.adaptation == "command":
            return []
        pairs = self._pairs(self._federations(subject, federation)).values()
        jobs = dict.fromkeys(job for pair in pairs for jobs in pair for job in jobs)
        return [*feature_jobs(subject), *jobs] if jobs else []

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Each metric, paired by seed: the same clients and batches with and without the stress."""
        federation, read = subject.recipe.federation, cache(results)
        if federation is None:
            return self.undeclared(dict.fromkeys(get_args(StressMetric), NO_FEDERATION))
        if subject.recipe.adaptation == "command":
            return CheckResult(measurements=tuple(not_measured(name, NOT_SIMULATED) for name in get_args(StressMetric)))
        study = self._federations(subject, federation)
        pairs, reasons = self._pairs(study), self._unmet(study)
        measured = {name: not_measured(name, reason) for name, reason in reasons.items()} | {
            name: study.loss(name, calm, stressed, read, confidence) for name, (calm, stressed) in pairs.items()
        }
        notes = [
            f"system_stress, alpha {alpha:g}: {study.heterogeneity(jobs, read)}"
            for alpha, jobs in zip((EVEN, self.uneven), pairs.get("heterogeneity_drop", ()), strict=False)
        ]
        return CheckResult(measurements=tuple(measured[name] for name in get_args(StressMetric)), notes=tuple(notes))

    def _federations(self, subject: Subject, federation: Federation) -> Federations:
        return Federations(subject, federation, self.clients, self.alpha, self.seeds)

    def _pairs(self, study: Federations) -> dict[StressMetric, tuple[list[Federate], list[Federate]]]:
        """For each metric that can be measured: federations without the stress, and with it."""
        # Three stresses share the calm federations; heterogeneity has its own pair, with two values of alpha.
        calm, reasons = study.jobs(), self._unmet(study)
        pairs: dict[StressMetric, tuple[list[Federate], list[Federate]]] = {
            "heterogeneity_drop": (study.jobs(alpha=EVEN), study.jobs(alpha=self.uneven)),
            **{name: (calm, study.jobs(stress=stress)) for name, stress in self._stresses().items()},
        }
        return {name: pair for name, pair in pairs.items() if name not in reasons}

    def _unmet(self, study: Federations) -> dict[StressMetric, str]:
        """For each metric that cannot be measured: the reason why the rule cannot be tried."""
        calm = study.unmet()
        reasons = {name: calm or study.unmet(stress=stress) for name, stress in self._stresses().items()}
        reasons["heterogeneity_drop"] = calm or study.undealt
        return {name: reason for name, reason in reasons.items() if reason}

    def _stresses(self) -> dict[StressMetric, Stress]:
        return {
            "gone_drop": ("gone", self.gone),
            "absent_drop": ("absent", self.absent),
            "stale_drop": ("stale", self.stale),
        }
