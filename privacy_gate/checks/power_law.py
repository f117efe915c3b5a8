"""How does the leak fall as classes grow? References are trained on smaller and smaller nested parts of the pool."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from privacy_gate.arrays import Bools, Floats
from privacy_gate.checks.base.check import Check, Results, Subject
from privacy_gate.checks.base.references import feature_jobs
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.kinds import Job, train_reference
from privacy_gate.metrics.power_law import SLOPE, Law, Point, fit, remedy
from privacy_gate.metrics.rates import FPRS, at, at_fpr
from privacy_gate.metrics.recipe import recipe_tpr
from privacy_gate.verdict.exhibits import LawPlot
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, Remedy, not_measured
from privacy_gate.verdict.metric import measured

SlopeMetric = Literal["slope_at_0.1_fpr", "slope_at_0.01_fpr", "slope_at_0.001_fpr"]


class PowerLaw(Check):
    """log10(tpr - fpr) against log10(examples per class), fitted on this recipe and this data.

    references  models at each size; those of the whole pool are shared with the other checks
    divisors    the sizes: 1 is the whole pool, 8 an eighth of every class
    target      metric -> the tpr that the remedy aims at; without it there is no remedy
    """

    title: ClassVar[str] = "The leak as classes grow"
    attack_class: ClassVar[str | None] = "membership inference"
    by_references: ClassVar[bool] = True

    check: Literal["power_law"] = "power_law"
    references: Annotated[int, Field(ge=8, le=10_000)] = 32
    divisors: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(min_length=3)] = (8, 4, 2, 1)
    target: Mapping[Literal["tpr_at_0.1_fpr", "tpr_at_0.01_fpr", "tpr_at_0.001_fpr"], float] = Field(
        default_factory=dict
    )
    limits: Mapping[SlopeMetric, Limit] = Field(default_factory=dict)

    @field_validator("divisors")
    @classmethod
    def _distinct(cls, divisors: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(divisors)) < len(divisors):
            raise ValueError("a divisor is listed twice")
        return divisors

    def jobs(self, subject: Subject) -> list[Job]:
        """Features, and the references of every size."""
        data = subject.data
        return [
            *feature_jobs(subject),
            *(
                train_reference(subject.recipe, data.digest, index, divisor, keeps=subject.keeps)
                for divisor in self.divisors
                for index in range(self.references)
            ),
        ]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The slope at each false positive rate that the data resolves, the plot, and the remedy."""
        points: dict[float, list[Point]] = {fpr: [] for fpr in FPRS}
        for divisor in self.divisors:
            phi, included, shots = self._models(subject, results, divisor)
            for fpr in FPRS:
                points[fpr].append(Point(shots, recipe_tpr(phi, included, fpr, confidence)))
        measurements: list[Measurement] = []
        laws: list[Law] = []
        for fpr in FPRS:
            try:
                laws.append(fit(points[fpr], fpr, confidence))
            except EvidenceError as error:
                measurements.append(not_measured(at("slope", fpr), str(error)))
            else:
                measurements.append(_slope(laws[-1], confidence))
        plots = tuple(
            LawPlot(fpr=law.fpr, shots=law.shots, excess=law.excess, slope=law.slope, intercept=law.intercept)
            for law in laws
        )
        return CheckResult(measurements=tuple(measurements), exhibits=plots, remedies=tuple(self._remedies(laws)))

    def _models(self, subject: Subject, results: Results, divisor: int) -> tuple[Floats, Bools, float]:
        """phi (M, n), training sets (M, n) on the rows of one part of the pool, and its members per class."""
        stored = [
            results(train_reference(subject.recipe, subject.data.digest, index, divisor, keeps=subject.keeps))
            for index in range(self.references)
        ]
        # Every row of this part of the pool is in some reference's training set, and no other row is.
        part = np.any([arrays["included"] for arrays in stored], axis=0)
        phi = np.stack([arrays["confidence"][part] for arrays in stored])
        included = np.stack([arrays["included"][part] for arrays in stored])
        # Each reference trains on the members' share of the pool, so shots are rows per class times that share.
        members = int((subject.data.split == Split.MEMBER).sum())
        pool = int((subject.data.split != Split.POPULATION).sum())
        classes = len(np.unique(subject.data.label[part]))
        return phi, included, float(part.sum() / classes * members / pool)

    def _remedies(self, laws: list[Law]) -> list[Remedy]:
        targets = {at("tpr", law.fpr): law for law in laws}
        return [remedy(targets[metric], limit) for metric, limit in self.target.items() if metric in targets]


def _slope(law: Law, confidence: float) -> Measurement:
    return measured(
        at_fpr(SLOPE, law.fpr),
        law.slope,
        (law.slope_low, law.slope_high),
        confidence,
        "weighted least squares, errors propagated",
        f"{len(law.shots)} sizes, {min(law.shots):g} to {max(law.shots):g} examples per class, R^2 {law.r_squared:.3f}",
    )
