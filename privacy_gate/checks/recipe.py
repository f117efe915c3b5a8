"""Does this recipe leak on this data? Each model is the target in turn, the candidate and every reference."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.every_model import EVERY_MODEL
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.leave_one_out import all_models
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.checks.base.check import Check, Results, Subject, distinct_names
from privacy_gate.checks.base.references import gather, reference_jobs
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.kinds import Job
from privacy_gate.metrics.rates import FPRS, at
from privacy_gate.metrics.recipe import calibrated_tpr, clustered_tpr, median_tpr
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

RecipeMetric = Literal[
    "recipe_tpr_at_0.1_fpr",
    "recipe_tpr_at_0.01_fpr",
    "recipe_tpr_at_0.001_fpr",
    "median_tpr_at_0.1_fpr",
    "median_tpr_at_0.01_fpr",
    "median_tpr_at_0.001_fpr",
    "calibrated_tpr_at_0.1_fpr",
    "calibrated_tpr_at_0.01_fpr",
    "calibrated_tpr_at_0.001_fpr",
]


class RecipeLeak(Check):
    """The protocol of arXiv 2402.06674: the candidate and every reference is the target once.

    recipe_tpr pools the scores of all models and rows in one curve, as the paper does; median_tpr is the median over
    models; calibrated_tpr gives each row its own threshold (with LiRA). The references are shared with the membership
    check.
    """

    title: ClassVar[str] = "Membership inference on this recipe"
    attack_class: ClassVar[str | None] = "membership inference"
    by_references: ClassVar[bool] = True

    check: Literal["recipe"] = "recipe"
    references: Annotated[int, Field(ge=4, le=10_000)] = 64
    attacks: Annotated[tuple[str, ...], Field(min_length=1)] = ("lira",)
    limits: Mapping[RecipeMetric, Limit] = Field(default_factory=dict)

    @field_validator("attacks")
    @classmethod
    def _attacks_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_names(names, EVERY_MODEL, "attack")

    def attacks_tried(self, release: Release, recipe: Recipe) -> tuple[str, ...]:
        """Those of the policy, whatever is released."""
        return self.attacks

    def jobs(self, subject: Subject) -> list[Job]:
        """The same jobs as a membership check with as many references."""
        return reference_jobs(subject, self.references)

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """All three rates at each false positive rate."""
        evidence = view_of(gather(subject, self.references, results), subject.release)
        measurements = [one for name in self.attacks for one in _pooled(name, evidence, confidence)]
        phi, included = all_models(evidence)
        measurements += [calibrated_tpr(phi, included, fpr, confidence) for fpr in FPRS]
        return CheckResult(measurements=tuple(measurements))


def _pooled(name: str, evidence: MembershipEvidence, confidence: float) -> list[Measurement]:
    """recipe_tpr and median_tpr of one attack."""
    try:
        scores = _scores(name, evidence)
    except EvidenceError as error:
        return [not_measured(at(f"{kind}_tpr", r), str(error), name) for kind in ("recipe", "median") for r in FPRS]
    _, included = all_models(evidence)
    return [
        *(clustered_tpr(scores, included, r, confidence, name) for r in FPRS),
        *(median_tpr(scores, included, fpr, confidence, name) for fpr in FPRS),
    ]


def _scores(name: str, evidence: MembershipEvidence) -> Floats:
    """Scores with every model as target, (M + 1, audited rows). Raises EvidenceError if evidence is missing."""
    if (reason := ATTACKS[name].unmet(evidence)) is not None:
        raise EvidenceError(reason)
    scores = EVERY_MODEL[name](evidence)
    # Leaving a model out may leave a row without models on one side; its score is then NaN.
    if not np.isfinite(scores).all():
        raise EvidenceError("some row is in, or out of, too few models to leave one out")
    return scores
