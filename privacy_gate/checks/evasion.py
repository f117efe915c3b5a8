"""Can small changes of its images turn the candidate's answers? (arXiv 2402.01857: adversarial susceptibility)"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from privacy_gate.arrays import Bools, Ints
from privacy_gate.checks.base.check import Results, Subject
from privacy_gate.checks.base.holdout import NO_IMAGES, apart, first, has_images, needed_apart, shuffled
from privacy_gate.checks.base.references import feature_jobs
from privacy_gate.checks.base.versus import ChampionLimit, Versus
from privacy_gate.documents import Record
from privacy_gate.jobs.kinds import Evade, Job, Universal
from privacy_gate.metrics.accuracy import needed_rows
from privacy_gate.metrics.evasion import robust_accuracy, universal_transfer
from privacy_gate.metrics.versus import not_compared, rows_to_agree, share_versus, unlearnt
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

EvasionMetric = Literal["robust_accuracy", "universal_transfer"]

NO_PUBLIC = "needs a public backbone: the recipe starts from random weights"
NOT_ASKED = "the policy asks for none: add universal: {} to the check"
FEWEST = 20
"""Holdout images below which neither figure is worth anything."""

Levels = Annotated[float, Field(gt=0, le=64)]


class UniversalSettings(Record):
    """One change for all images, crafted on the public backbone.

    images  holdout images it is crafted on, at most, and half of the holdout at most; it is tried on others
    levels  largest change of a pixel, of 255
    """

    images: Annotated[int, Field(ge=50, le=100_000)] = 500
    levels: Levels = 10.0
    steps: Annotated[int, Field(ge=20, le=100_000)] = 200


class Evasion(Versus):
    """robust_accuracy: rows right, and still right under APGD-CE and then APGD-T (Croce & Hein 2020).

    universal_transfer: answers changed by one change of all images, crafted without the candidate: whoever knows its
    public backbone can make it.

    images     holdout images attacked, at most
    levels     largest change of a pixel, of 255
    steps      of each attack
    targets    classes that the targeted attack tries, likeliest first
    universal  how the one change is crafted; without it there is none
    """

    title: ClassVar[str] = "The model under adversarial images"
    attack_class: ClassVar[str | None] = "evasion"
    left_open: ClassVar[str | None] = "evasion"
    tiered: ClassVar[bool] = True
    comparable: ClassVar[tuple[str, ...]] = ("robust_accuracy", "universal_transfer")

    check: Literal["evasion"] = "evasion"
    images: Annotated[int, Field(ge=FEWEST, le=100_000)] = 500
    levels: Levels = 1.0
    steps: Annotated[int, Field(ge=5, le=10_000)] = 20
    targets: Annotated[int, Field(ge=1, le=1000)] = 3
    universal: UniversalSettings | None = None
    limits: Mapping[EvasionMetric, ChampionLimit] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _limited_is_measured(self) -> Self:
        if "universal_transfer" in self.limits and self.universal is None:
            raise ValueError("a limit on universal_transfer needs a change to be crafted: add universal: {}")
        return self

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """What a model that no attack turns asks for, `images` at most, and what a change is crafted on besides."""
        return {
            metric: self._holdout(metric, needed_rows(limit, confidence, self.images))
            for metric, limit in self.absolute.items()
        }

    def _rows_to_agree(self, metric: str, limit: Limit, confidence: float) -> int | None:
        return self._holdout(metric, rows_to_agree(limit, confidence, self.images))

    def _holdout(self, metric: str, rows: int | None) -> int | None:
        """Holdout rows that leave so many for the metric."""
        if rows is None:
            return None
        if metric == "universal_transfer" and self.universal is not None:
            rows = needed_apart(self.universal.images, rows)
        return max(FEWEST, rows)

    def jobs(self, subject: Subject) -> list[Job]:
        """The attacks, on the champion too where it is compared; none where there are no images."""
        attacked, tricked = (self.rival(subject, metric) for metric in ("robust_accuracy", "universal_transfer"))
        asked = [each for each in (subject, attacked) if each and not self._absent(each)]
        crafted = [each for each in (subject, tricked) if each and not (self._absent(each) or self._uncrafted(each))]
        made = (job for each in crafted for job in (*feature_jobs(each), self._crafted(each)))
        return [*(self._attacked(each) for each in asked), *made]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Both figures, with what tells how to read them, and their differences from the champion's."""
        robust, transfer = (told(subject, results, confidence) for told in (self._robust, self._transfer))

        def difference(metric: str, rival: Subject) -> Measurement:
            told, own = (self._robust, robust) if metric == "robust_accuracy" else (self._transfer, transfer)
            other = told(rival, results, confidence)
            if not other.figure.measured:
                return not_compared(metric, str(other.figure.reason))
            if why := unlearnt(other.right, other.label, confidence):
                return not_compared(metric, why)
            return share_versus((own.figure, other.figure), (own.counted, other.counted), confidence)

        found = CheckResult(measurements=(robust.figure, transfer.figure), notes=(*robust.notes, *transfer.notes))
        return self.compared(found, subject, difference)

    def _robust(self, subject: Subject, results: Results, confidence: float) -> "_Told":
        if absent := self._absent(subject):
            return _Told(not_measured("robust_accuracy", absent))
        job = self._attacked(subject)
        found = results(job)
        seen = {name: found[name] for name in ("right", "standing", "guessed", "wide", "flat")}
        note = (
            f"evasion: of {len(found['right']):,} holdout images {found['right'].mean():.1%} are right as they are, "
            f"{found['untargeted'].mean():.1%} under the untargeted attack, {found['standing'].mean():.1%} under the "
            f"targeted ones as well; changes of {self.levels:g} of 255 levels, {self.steps} steps"
        )
        return _Told(
            figure=robust_accuracy(**seen, confidence=confidence),
            counted=found["standing"] & ~found["guessed"],
            right=found["right"],
            label=subject.data.label[list(job.rows)],
            notes=(note,),
        )

    def _transfer(self, subject: Subject, results: Results, confidence: float) -> "_Told":
        if absent := self._absent(subject) or self._uncrafted(subject):
            return _Told(not_measured("universal_transfer", absent))
        job = self._crafted(subject)
        found, label = results(job), subject.data.label[list(job.tried)]
        crafted, noise = (
            float((found[f"{who}_plain"] != found[f"{who}_{how}"]).mean())
            for who, how in (("probe", "shifted"), ("predicted", "noise"))
        )
        note = (
            f"evasion: the universal change changes {crafted:.1%} of the answers of the probe it was crafted on; "
            f"random signs of the same size change {noise:.1%} of the candidate's"
        )
        plain, shifted = found["predicted_plain"], found["predicted_shifted"]
        return _Told(
            figure=universal_transfer(plain, shifted, crafted, confidence),
            counted=plain != shifted,
            right=plain == label,
            label=label,
            notes=(note,),
        )

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

    def _crafted(self, subject: Subject) -> Universal:
        how = self.universal or UniversalSettings()
        fixed = (subject.artifact, subject.recipe, subject.data.digest)
        return Universal(*fixed, *apart(subject, how.images, self.images), how.levels, how.steps)


_NO_ROWS = np.zeros(0, dtype=bool)


class _Told(NamedTuple):
    """What one model's answers to R rows tell: a figure, the rows it counts, those right as they are, their labels."""

    figure: Measurement
    counted: Bools = _NO_ROWS
    right: Bools = _NO_ROWS
    label: Ints = np.zeros(0, dtype=np.int64)
    notes: tuple[str, ...] = ()
