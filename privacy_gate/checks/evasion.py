"""Can small changes of its images turn the candidate's answers? (arXiv 2402.01857: adversarial susceptibility)"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.checks.check import Check, Results, Subject
from privacy_gate.checks.holdout import NO_IMAGES, apart, first, has_images, needed_apart, shuffled
from privacy_gate.checks.references import feature_jobs
from privacy_gate.documents import Record
from privacy_gate.job import Evade, Job
from privacy_gate.job import Universal as Craft
from privacy_gate.metrics.accuracy import needed_rows
from privacy_gate.metrics.evasion import robust_accuracy, universal_transfer
from privacy_gate.verdict import CheckResult, Limit, Measurement, not_measured

EvasionMetric = Literal["robust_accuracy", "universal_transfer"]

NO_PUBLIC = "needs a public backbone: the recipe starts from random weights"
NOT_ASKED = "the policy asks for none: add universal: {} to the check"
FEWEST = 20
"""Holdout images below which neither figure is worth anything."""

Levels = Annotated[float, Field(gt=0, le=64)]


class Universal(Record):
    """One change for all images, crafted on the public backbone.

    images  holdout images it is crafted on, at most, and half of the holdout at most; it is tried on others
    levels  largest change of a pixel, of 255
    """

    images: Annotated[int, Field(ge=50, le=100_000)] = 500
    levels: Levels = 10.0
    steps: Annotated[int, Field(ge=20, le=100_000)] = 200


class Evasion(Check):
    """robust_accuracy: rows right, and still right under APGD-CE and then APGD-T (Croce & Hein 2020).

    universal_transfer: answers changed by one change of all images, crafted without the candidate: whoever knows its
    public backbone can make it.

    images     holdout images attacked, at most
    levels     largest change of a pixel, of 255
    steps      of each attack
    targets    classes that the targeted attack tries, likeliest first
    universal  how the one change is crafted; without it there is none
    """

    check: Literal["evasion"] = "evasion"
    images: Annotated[int, Field(ge=FEWEST, le=100_000)] = 500
    levels: Levels = 1.0
    steps: Annotated[int, Field(ge=5, le=10_000)] = 20
    targets: Annotated[int, Field(ge=1, le=1000)] = 3
    universal: Universal | None = None
    limits: Mapping[EvasionMetric, Limit] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _limited_is_measured(self) -> Self:
        if "universal_transfer" in self.limits and self.universal is None:
            raise ValueError("a limit on universal_transfer needs a change to be crafted: add universal: {}")
        return self

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """What a model that no attack turns asks for, `images` at most, and what a change is crafted on besides."""
        needed: dict[str, int | None] = {}
        for metric, limit in self.limits.items():
            rows = needed_rows(limit, confidence, self.images)
            if rows is not None and metric == "universal_transfer" and self.universal is not None:
                rows = needed_apart(self.universal.images, rows)
            needed[metric] = None if rows is None else max(FEWEST, rows)
        return needed

    def jobs(self, subject: Subject) -> list[Job]:
        """The attacks; none where there are no images."""
        if self._absent(subject):
            return []
        crafted = [] if self._uncrafted(subject) else [*feature_jobs(subject), self._crafted(subject)]
        return [self._attacked(subject), *crafted]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Both figures, with what tells how to read them."""
        if absent := self._absent(subject):
            names: tuple[EvasionMetric, ...] = ("robust_accuracy", "universal_transfer")
            return CheckResult(measurements=tuple(not_measured(name, absent) for name in names))
        found = results(self._attacked(subject))
        seen = {name: found[name] for name in ("right", "standing", "guessed", "wide", "flat")}
        standing = robust_accuracy(**seen, confidence=confidence)
        note = (
            f"evasion: of {len(found['right']):,} holdout images {found['right'].mean():.1%} are right as they are, "
            f"{found['untargeted'].mean():.1%} under the untargeted attack, {found['standing'].mean():.1%} under the "
            f"targeted ones as well; changes of {self.levels:g} of 255 levels, {self.steps} steps"
        )
        transfer, more = self._transfer(subject, results, confidence)
        return CheckResult(measurements=(standing, transfer), notes=(note, *more))

    def _transfer(self, subject: Subject, results: Results, confidence: float) -> tuple[Measurement, list[str]]:
        if absent := self._uncrafted(subject):
            return not_measured("universal_transfer", absent), []
        found = results(self._crafted(subject))
        crafted, noise = (
            float((found[f"{who}_plain"] != found[f"{who}_{how}"]).mean())
            for who, how in (("probe", "shifted"), ("predicted", "noise"))
        )
        note = (
            f"evasion: the universal change changes {crafted:.1%} of the answers of the probe it was crafted on; "
            f"random signs of the same size change {noise:.1%} of the candidate's"
        )
        plain, shifted = found["predicted_plain"], found["predicted_shifted"]
        return universal_transfer(plain, shifted, crafted, confidence), [note]

    def _absent(self, subject: Subject) -> str | None:
        """Why nothing can be measured; None where it can."""
        if not has_images(subject):
            return NO_IMAGES
        if (rows := len(shuffled(subject))) < FEWEST:
            return f"needs >= {FEWEST} holdout images, found {rows}"
        return None

    def _uncrafted(self, subject: Subject) -> str | None:
        if self.universal is None:
            return NOT_ASKED
        return NO_PUBLIC if subject.recipe.backbone.weights is None else None

    def _attacked(self, subject: Subject) -> Evade:
        fixed = (subject.artifact, subject.recipe, subject.data.digest)
        return Evade(*fixed, first(subject, self.images), self.levels, self.steps, self.targets)

    def _crafted(self, subject: Subject) -> Craft:
        how = self.universal or Universal()
        fixed = (subject.artifact, subject.recipe, subject.data.digest)
        return Craft(*fixed, *apart(subject, how.images, self.images), how.levels, how.steps)
