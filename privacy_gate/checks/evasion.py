"""Can small changes to an image change the candidate's answer? (arXiv 2402.01857: adversarial susceptibility)"""

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
NOT_ASKED = "the policy requests no universal change: add universal: {} to the check"
FEWEST = 20
"""With fewer holdout images neither metric is reported."""

Levels = Annotated[float, Field(gt=0, le=64)]


class UniversalSettings(Record):
    """Settings of the one change for all images, which is crafted on the public backbone.

    images  holdout images it is crafted on, at most, and never more than half of the holdout; it is tried on others
    levels  largest change of a pixel, out of 255
    steps   of gradient descent
    """

    images: Annotated[int, Field(ge=50, le=100_000)] = 500
    levels: Levels = 10.0
    steps: Annotated[int, Field(ge=20, le=100_000)] = 200


class Evasion(Versus):
    """robust_accuracy: rows that are right, and still right under APGD-CE and then APGD-T (Croce & Hein 2020).

    universal_transfer: answers changed by one change for all images. It is crafted without the candidate, so anyone who
    knows the public backbone can make it.

    images     holdout images attacked, at most
    levels     largest change of a pixel, out of 255
    steps      of each attack
    targets    classes that the targeted attack tries, the most likely first
    universal  settings of the one change for all images; without it there is none
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
            raise ValueError("a limit on universal_transfer needs a universal change: add universal: {}")
        return self

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """Rows for a model that no attack changes, `images` at most, plus those that the universal change needs."""
        return {
            metric: self._holdout(metric, needed_rows(limit, confidence, self.images))
            for metric, limit in self.absolute.items()
        }

    def _rows_to_agree(self, metric: str, limit: Limit, confidence: float) -> int | None:
        return self._holdout(metric, rows_to_agree(limit, confidence, self.images))

    def _holdout(self, metric: str, rows: int | None) -> int | None:
        """Holdout rows in all that leave so many rows for the metric."""
        if rows is None:
            return None
        if metric == "universal_transfer" and self.universal is not None:
            # The universal change is tried on other rows than it is crafted on.
            rows = needed_apart(self.universal.images, rows)
        return max(FEWEST, rows)

    def jobs(self, subject: Subject) -> list[Job]:
        """The attacks, on the champion too if it is compared; empty if there are no images."""
        attacked, tricked = (self.rival(subject, metric) for metric in ("robust_accuracy", "universal_transfer"))
        asked = [one for one in (subject, attacked) if one and not self._absent(one)]
        crafted = [one for one in (subject, tricked) if one and not (self._absent(one) or self._uncrafted(one))]
        crafting = (job for one in crafted for job in (*feature_jobs(one), self._crafted(one)))
        return [*(self._attacked(one) for one in asked), *crafting]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Both metrics, with notes on how to read them, and their differences from the champion's."""
        robust, transfer = (outcome(subject, results, confidence) for outcome in (self._robust, self._transfer))

        def difference(metric: str, rival: Subject) -> Measurement:
            outcome, own = (self._robust, robust) if metric == "robust_accuracy" else (self._transfer, transfer)
            other = outcome(rival, results, confidence)
            if not other.figure.measured:
                return not_compared(metric, str(other.figure.reason))
            if why := unlearnt(other.right, other.label, confidence):
                return not_compared(metric, why)
            return share_versus((own.figure, other.figure), (own.counted, other.counted), confidence)

        result = CheckResult(measurements=(robust.figure, transfer.figure), notes=(*robust.notes, *transfer.notes))
        return self.compared(result, subject, difference)

    def _robust(self, subject: Subject, results: Results, confidence: float) -> "_Outcome":
        if absent := self._absent(subject):
            return _Outcome(not_measured("robust_accuracy", absent))
        job = self._attacked(subject)
        attacked = results(job)
        signs = {name: attacked[name] for name in ("right", "standing", "guessed", "wide", "flat")}
        note = (
            f"evasion: {attacked['right'].mean():.1%} of {len(attacked['right']):,} images are right unchanged, "
            f"{attacked['untargeted'].mean():.1%} under the untargeted attack, {attacked['standing'].mean():.1%} under "
            f"the targeted attack as well; changes of {self.levels:g} of 255 levels, {self.steps} steps"
        )
        return _Outcome(
            figure=robust_accuracy(**signs, confidence=confidence),
            counted=attacked["standing"] & ~attacked["guessed"],
            right=attacked["right"],
            label=subject.data.label[list(job.rows)],
            notes=(note,),
        )

    def _transfer(self, subject: Subject, results: Results, confidence: float) -> "_Outcome":
        if absent := self._absent(subject) or self._uncrafted(subject):
            return _Outcome(not_measured("universal_transfer", absent))
        job = self._crafted(subject)
        arrays, label = results(job), subject.data.label[list(job.tried)]
        crafted, noise = (
            float((arrays[f"{model}_plain"] != arrays[f"{model}_{change}"]).mean())
            for model, change in (("probe", "shifted"), ("predicted", "noise"))
        )
        note = (
            f"evasion: the universal change alters {crafted:.1%} of the answers of the probe it was crafted on; "
            f"random signs of the same size alter {noise:.1%} of the candidate's"
        )
        plain, shifted = arrays["predicted_plain"], arrays["predicted_shifted"]
        return _Outcome(
            figure=universal_transfer(plain, shifted, crafted, confidence),
            counted=plain != shifted,
            right=plain == label,
            label=label,
            notes=(note,),
        )

    def _absent(self, subject: Subject) -> str | None:
        """The reason why nothing can be measured; None if it can."""
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


class _Outcome(NamedTuple):
    """One model's answers to R rows: the metric, the rows that count in it, those right unchanged, and their labels."""

    figure: Measurement
    counted: Bools = _NO_ROWS
    right: Bools = _NO_ROWS
    label: Ints = np.zeros(0, dtype=np.int64)
    notes: tuple[str, ...] = ()
