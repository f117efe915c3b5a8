"""Is the model any good, and is it the model its dossier speaks of?"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from privacy_gate.checks.check import Check, Results, Subject
from privacy_gate.checks.references import feature_jobs
from privacy_gate.dataset import Split
from privacy_gate.job import Job, Score
from privacy_gate.metrics.accuracy import accuracy
from privacy_gate.verdict import CheckResult, Control, Limit

UtilityMetric = Literal["holdout_accuracy", "member_accuracy"]

CONTROL_CONFIDENCE = 0.999
"""A logged accuracy outside this interval of the measured one contradicts the dossier."""


class Utility(Check):
    """Accuracy on members and holdout, and whether the training run logged the same."""

    check: Literal["utility"] = "utility"
    limits: Mapping[UtilityMetric, Limit] = Field(default_factory=dict)

    def jobs(self, subject: Subject) -> list[Job]:
        """Features and the candidate's logits."""
        data = subject.data
        return [
            *feature_jobs(subject),
            Score(subject.artifact, subject.recipe, data.digest),
        ]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Accuracies with Clopper-Pearson intervals; a control for each one the run logged."""
        data = subject.data
        logits = results(Score(subject.artifact, subject.recipe, data.digest))["logits"]
        correct = np.argmax(logits, axis=1) == data.label
        measurements, controls = [], []
        for metric, split in (("holdout_accuracy", Split.HOLDOUT), ("member_accuracy", Split.MEMBER)):
            part = correct[data.split == split]
            measurements.append(accuracy(part, confidence, metric))
            if (logged := subject.logged.get(metric)) is None:
                continue
            band = accuracy(part, CONTROL_CONFIDENCE, metric)
            held = band.low is not None and band.high is not None and band.low <= logged <= band.high
            detail = (
                f"the run logged {metric} {logged:.4g}, measured {band.value:.4g} [{band.low:.4g}, {band.high:.4g}]"
            )
            if not held:
                detail += ": the dossier does not describe this model, or not this data"
            controls.append(Control(name=f"logged {metric}", held=held, detail=detail))
        return CheckResult(measurements=tuple(measurements), controls=tuple(controls))
