"""Is the model accurate enough, and is it the model that its dossier describes?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from privacy_gate.arrays import Bools
from privacy_gate.checks.base.check import Results, Subject
from privacy_gate.checks.base.references import feature_jobs, score_job
from privacy_gate.checks.base.versus import ChampionLimit, Versus
from privacy_gate.dossier.dataset import Split
from privacy_gate.jobs.kinds import Job, Score
from privacy_gate.metrics.accuracy import HOLDOUT_ACCURACY, MEMBER_ACCURACY, accuracy
from privacy_gate.metrics.versus import not_compared, share_versus, unlearnt
from privacy_gate.verdict.judgement import CheckResult, Control, Measurement

UtilityMetric = Literal["holdout_accuracy", "member_accuracy"]

CONTROL_CONFIDENCE = 0.999
"""A logged accuracy outside this interval of the measured accuracy contradicts the dossier."""


class Utility(Versus):
    """Accuracy on members and holdout, and whether it agrees with the accuracy that the training run logged."""

    title: ClassVar[str] = "Utility"
    comparable: ClassVar[tuple[str, ...]] = ("holdout_accuracy",)

    check: Literal["utility"] = "utility"
    limits: Mapping[UtilityMetric, ChampionLimit] = Field(default_factory=dict)

    def jobs(self, subject: Subject) -> list[Job]:
        """Features and logits of the candidate, and of the champion if it is compared."""
        rival = self.rival(subject, "holdout_accuracy")
        asked = [subject] if rival is None else [subject, rival]
        return [job for one in asked for job in (*feature_jobs(one), _score(one))]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Accuracies with Clopper-Pearson intervals; one control for each accuracy that the run logged."""
        data = subject.data
        correct = _correct(subject, results)
        measurements, controls = [], []
        for record, split in ((HOLDOUT_ACCURACY, Split.HOLDOUT), (MEMBER_ACCURACY, Split.MEMBER)):
            metric = record.name
            part = correct[data.split == split]
            measurements.append(accuracy(part, confidence, record))
            if (logged := subject.logged.get(metric)) is None:
                continue
            # At this confidence a true dossier fails the control in one of 1,000 audits.
            band = accuracy(part, CONTROL_CONFIDENCE, record)
            held = band.low is not None and band.high is not None and band.low <= logged <= band.high
            detail = (
                f"the run logged {metric} {logged:.4g}, measured {band.value:.4g} [{band.low:.4g}, {band.high:.4g}]"
            )
            if not held:
                detail += ": the dossier does not describe this model or this data"
            controls.append(Control(name=f"logged {metric}", held=held, detail=detail))
        result = CheckResult(measurements=tuple(measurements), controls=tuple(controls))

        def difference(metric: str, rival: Subject) -> Measurement:
            holdout = data.split == Split.HOLDOUT
            own, other = correct[holdout], _correct(rival, results)[holdout]
            if why := unlearnt(other, data.label[holdout], confidence):
                return not_compared(metric, why)
            return share_versus(
                (measurements[0], accuracy(other, confidence, HOLDOUT_ACCURACY)), (own, other), confidence
            )

        return self.compared(result, subject, difference)


def _score(subject: Subject) -> Score:
    return score_job(subject)


def _correct(subject: Subject, results: Results) -> Bools:
    """Whether the label has the largest logit, (N,)."""
    return np.asarray(np.argmax(results(_score(subject))["logits"], axis=1) == subject.data.label)
