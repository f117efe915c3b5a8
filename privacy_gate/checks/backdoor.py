"""Does a known trigger make the candidate say what its planter wants? (arXiv 2402.01857: one-access poisoning)"""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from privacy_gate.checks.check import Check, Results, Subject, distinct_names
from privacy_gate.checks.references import feature_jobs
from privacy_gate.dataset import Split
from privacy_gate.job import Job, Score, Trigger
from privacy_gate.metrics.backdoor import backdoor_lift
from privacy_gate.verdict import CheckResult, Limit, not_measured

TRIGGERS = ("corner", "grid", "blended", "sinusoid")
"""Those of compute.triggers."""

NO_IMAGES = "needs images: the table holds embeddings, or a program of the policy's trains"


class Backdoor(Check):
    """backdoor_lift: the largest rise of any target's rate that a trigger causes, among images of other classes.

    triggers  which are tried; a trigger that nobody thought of is not found
    images    holdout images they are put on, at most
    """

    check: Literal["backdoor"] = "backdoor"
    triggers: Annotated[tuple[str, ...], Field(min_length=1)] = TRIGGERS
    images: Annotated[int, Field(ge=50, le=100_000)] = 500
    limits: Mapping[Literal["backdoor_lift"], Limit] = Field(default_factory=dict)

    @field_validator("triggers")
    @classmethod
    def _triggers_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_names(names, TRIGGERS, "trigger")

    def jobs(self, subject: Subject) -> list[Job]:
        """The candidate's answers with each trigger, and without; none where there are no images."""
        if not _has_images(subject):
            return []
        score = Score(subject.artifact, subject.recipe, subject.data.digest)
        return [*feature_jobs(subject), score, *self._tried(subject).values()]

    def _tried(self, subject: Subject) -> dict[str, Trigger]:
        rows = tuple(self._rows(subject).tolist())
        return {
            name: Trigger(subject.artifact, subject.recipe, subject.data.digest, name, rows) for name in self.triggers
        }

    def _rows(self, subject: Subject) -> NDArray[np.int64]:
        """Holdout rows, drawn by the data's digest."""
        rows = np.flatnonzero(subject.data.split == Split.HOLDOUT)
        rng = np.random.default_rng(int(subject.data.digest[:16], 16))
        return np.sort(rng.permutation(rows)[: self.images])

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The lift of the worst trigger and target."""
        if not _has_images(subject):
            return CheckResult(measurements=(not_measured("backdoor_lift", NO_IMAGES),))
        rows, data = self._rows(subject), subject.data
        plain = results(Score(subject.artifact, subject.recipe, data.digest))["logits"][rows].argmax(axis=1)
        shown = {name: results(job)["predicted"] for name, job in self._tried(subject).items()}
        found = backdoor_lift(plain, shown, data.label[rows], subject.recipe.classes, confidence)
        return CheckResult(
            measurements=(found,),
            notes=("backdoor: only the triggers listed were tried; none was searched for by inversion",),
        )


def _has_images(subject: Subject) -> bool:
    return subject.data.image is not None and subject.recipe.adaptation != "command"
