"""Does the candidate still work on images that are noisy, blurred or foggy? (arXiv 2402.01857: out-of-distribution
resilience)"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from privacy_gate.arrays import Bools
from privacy_gate.checks.base.check import Results, Subject, distinct_names
from privacy_gate.checks.base.holdout import NO_IMAGES, first, has_images
from privacy_gate.checks.base.references import feature_jobs, score_job
from privacy_gate.checks.base.versus import ChampionLimit, Versus
from privacy_gate.jobs.kinds import Corrupt, Job, Score
from privacy_gate.metrics.corruption import FEWEST, corruption_ratio
from privacy_gate.metrics.versus import Answers, not_compared, ratio_versus, rows_to_keep_ratio, unlearnt
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The corruptions that compute.corruptions implements."""

Severity = Annotated[int, Field(ge=1, le=5)]


class Corruption(Versus):
    """corruption_ratio: mean accuracy under fifteen common corruptions, at three severities each, relative to clean
    images.

    Hendrycks & Dietterich 2019 (arXiv 1903.12261). Standard networks keep .775 of their accuracy on CIFAR-10-C and .515
    on ImageNet-C.

    images       holdout images to corrupt, at most
    corruptions  their names
    severities   a list of values from 1 to 5
    """

    title: ClassVar[str] = "The model on corrupted images"
    left_open: ClassVar[str | None] = "accuracy on corrupted images"
    tiered: ClassVar[bool] = True
    comparable: ClassVar[tuple[str, ...]] = ("corruption_ratio",)

    check: Literal["corruption"] = "corruption"
    images: Annotated[int, Field(ge=100, le=2000)] = 300
    corruptions: Annotated[tuple[str, ...], Field(min_length=1)] = CORRUPTIONS
    severities: Annotated[tuple[Severity, ...], Field(min_length=1)] = (1, 3, 5)
    limits: Mapping[Literal["corruption_ratio"], ChampionLimit] = Field(default_factory=dict)

    @field_validator("corruptions")
    @classmethod
    def _corruptions_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_names(names, CORRUPTIONS, "corruption")

    @field_validator("severities")
    @classmethod
    def _severities_differ(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(severities)) < len(severities):
            raise ValueError("a severity is listed twice")
        return severities

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """The bootstrap needs FEWEST rows; if no row is lost to a corruption, no resampled ratio is below 1."""
        return dict.fromkeys(self.absolute, FEWEST)

    def _rows_to_agree(self, metric: str, limit: Limit, confidence: float) -> int | None:
        rows = rows_to_keep_ratio(limit, confidence, self.images)
        return None if rows is None else max(FEWEST, rows)

    def jobs(self, subject: Subject) -> list[Job]:
        """The candidate's answers with and without each corruption, and the champion's if it is compared; empty if
        there are no images."""
        compared = (subject, self.rival(subject, "corruption_ratio"))
        asked = [one for one in compared if one and has_images(one)]
        return [job for one in asked for job in (*feature_jobs(one), self._score(one), *self._corrupted(one).values())]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The ratio over all corruptions and severities; a note says what remains under each corruption."""
        if not has_images(subject):
            missing = not_measured("corruption_ratio", NO_IMAGES)
            return self.compared(
                CheckResult(measurements=(missing,)), subject, lambda metric, _: not_compared(metric, NO_IMAGES)
            )
        # The same rows for every model: they depend on the data only.
        label = subject.data.label[list(first(subject, self.images))]

        def ratio(answers: Answers) -> Measurement:
            # A new generator for each model: both are resampled in the same way.
            return corruption_ratio(*answers, label, confidence, _chance(subject))

        answers = self._answers(subject, results)
        ratio_here = ratio(answers)

        def difference(metric: str, rival: Subject) -> Measurement:
            if not has_images(rival):
                return not_compared(metric, NO_IMAGES)
            other = self._answers(rival, results)
            if why := unlearnt(other[0], label, confidence):
                return not_compared(metric, why)
            return ratio_versus((ratio_here, ratio(other)), (answers, other), confidence, _chance(subject))

        notes = (self._note(*answers),) if ratio_here.measured else ()
        return self.compared(CheckResult(measurements=(ratio_here,), notes=notes), subject, difference)

    def _answers(self, subject: Subject, results: Results) -> Answers:
        rows = list(first(subject, self.images))
        label = subject.data.label[rows]
        right = results(self._score(subject))["logits"][rows].argmax(axis=1) == label
        return right, {name: results(job)["predicted"] == label for name, job in self._corrupted(subject).items()}

    def _note(self, right: Bools, spoiled: Mapping[str, Bools]) -> str:
        """The share of the clean accuracy that remains under each corruption, the highest loss first."""
        ratios = {
            name: float(np.mean([spoiled[f"{name} {severity}"].mean() for severity in self.severities]) / right.mean())
            for name in self.corruptions
        }
        listed = ", ".join(f"{name} {share:.2f}" for name, share in sorted(ratios.items(), key=lambda item: item[1]))
        return f"corruption: share of the clean accuracy of {right.mean():.1%} that remains, by corruption: {listed}"

    def _score(self, subject: Subject) -> Score:
        return score_job(subject)

    def _corrupted(self, subject: Subject) -> dict[str, Corrupt]:
        rows, fixed = first(subject, self.images), (subject.artifact, subject.recipe, subject.data.digest)
        return {
            f"{name} {severity}": Corrupt(*fixed, rows, name, severity)
            for name in self.corruptions
            for severity in self.severities
        }


def _chance(subject: Subject) -> np.random.Generator:
    """A generator seeded with the data, so that a repeated audit resamples the same rows."""
    return np.random.default_rng(int(subject.data.digest[:16], 16))
