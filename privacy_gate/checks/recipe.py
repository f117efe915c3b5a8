"""Does this recipe leak on this data? Every reference in turn as the target, not the candidate alone."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from privacy_gate.attacks.leave_one_out import all_models
from privacy_gate.checks.check import Check, Results, Subject
from privacy_gate.checks.references import gather, reference_jobs
from privacy_gate.job import Job
from privacy_gate.metrics.recipe import calibrated_tpr, recipe_tpr
from privacy_gate.verdict import CheckResult, Limit

RecipeMetric = Literal[
    "recipe_tpr_at_0.1_fpr",
    "recipe_tpr_at_0.01_fpr",
    "recipe_tpr_at_0.001_fpr",
    "calibrated_tpr_at_0.1_fpr",
    "calibrated_tpr_at_0.01_fpr",
    "calibrated_tpr_at_0.001_fpr",
]


class RecipeLeak(Check):
    """The protocol of arXiv 2402.06674: candidate and references, each the target once, by LiRA.

    recipe_tpr pools the scores of all models and rows in one curve, as the paper does; calibrated_tpr
    gives each row its own threshold. It shares the references of the membership check.
    """

    check: Literal["recipe"] = "recipe"
    references: Annotated[int, Field(ge=4, le=10_000)] = 64
    limits: Mapping[RecipeMetric, Limit] = Field(default_factory=dict)

    def jobs(self, subject: Subject) -> list[Job]:
        """Those of the membership check with as many references."""
        return reference_jobs(subject, self.references)

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Both rates at each false positive rate."""
        phi, included = all_models(gather(subject, self.references, results))
        measurements = [
            measure(phi, included, fpr, confidence)
            for measure in (recipe_tpr, calibrated_tpr)
            for fpr in (0.1, 0.01, 0.001)
        ]
        return CheckResult(measurements=tuple(measurements))
