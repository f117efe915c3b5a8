"""Limits relative to the champion: how much worse a candidate may be than the version that is promoted now."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.checks.base.check import Check, Subject
from privacy_gate.documents import Record
from privacy_gate.metrics.catalogue import METRICS
from privacy_gate.metrics.versus import rows_to_agree, versus
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, Severity, not_measured

Distance = Annotated[float, Field(ge=0, le=1)]

NOBODY_LOOKED = "the version promoted now was not looked up"


class ChampionLimit(Record):
    """A bound on a metric, on how much worse than the champion the candidate may be, or both.

    max, min          of the candidate's own figure, as in every limit
    champion_drop     how far the candidate's figure may be below the champion's; .05 is five points
    champion_rise     how far it may be above
    without_champion  if no version has the alias yet: `block` (the comparison is not measured) or `pass`. Set it if
                      there is no `max` or `min`; otherwise that limit applies until a champion exists
    """

    max: float | None = None
    min: float | None = None
    champion_drop: Distance | None = None
    champion_rise: Distance | None = None
    without_champion: Literal["block", "pass"] | None = None
    severity: Severity = Severity.BLOCK

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.max is not None and self.min is not None:
            raise ValueError("a limit has max or min, not both")
        if self.relative is None:
            if self.absolute is None:
                raise ValueError("a limit needs max or min, champion_drop or champion_rise")
            if self.without_champion is not None:
                raise ValueError("without_champion: needs champion_drop or champion_rise: add one of them")
            return self
        if self.champion_drop is not None and (self.champion_rise is not None or self.max is not None):
            raise ValueError("champion_drop: goes with min, not max or champion_rise: it bounds the figure from below")
        if self.champion_rise is not None and self.min is not None:
            raise ValueError("champion_rise: goes with max, not min: it bounds the figure from above")
        if (self.absolute is None) == (self.without_champion is None):
            side = "min" if self.champion_drop is not None else "max"
            raise ValueError(
                f"a limit relative to the champion needs either a {side}, which applies until a champion exists, or "
                "without_champion: block or pass"
            )
        return self

    @property
    def absolute(self) -> Limit | None:
        """The bound on the candidate's own figure; None without one."""
        if self.max is None and self.min is None:
            return None
        return Limit(max=self.max, min=self.min, severity=self.severity)

    @property
    def relative(self) -> Limit | None:
        """The bound on the candidate's figure minus the champion's; None without one."""
        if self.champion_drop is not None:
            # 0.0 - x rather than -x: a drop of 0 gives 0.0 and not -0.0, which reports would print.
            return Limit(min=0.0 - self.champion_drop, severity=self.severity)
        if self.champion_rise is not None:
            return Limit(max=self.champion_rise, severity=self.severity)
        return None


class Versus(Check):
    """A check with metrics that can be limited relative to the champion."""

    comparable: ClassVar[tuple[str, ...]] = ()
    """The names of those metrics."""

    @model_validator(mode="after")
    def _relative_limits_have_a_sense(self) -> Self:
        """A drop in place of a rise would let everything pass."""
        for metric, limit in self._limits.items():
            for side, given, bad in (
                ("champion_drop", limit.champion_drop, "lower"),
                ("champion_rise", limit.champion_rise, "higher"),
            ):
                known = [name for name in self.comparable if METRICS[name].worse == bad]
                if given is not None and metric not in known:
                    hint = f"it is for {', '.join(known)}" if known else "no metric of this check can have it"
                    raise ValueError(f"limits: {metric}: {side}: {hint}")
        return self

    @property
    def _limits(self) -> Mapping[str, ChampionLimit]:
        return dict(getattr(self, "limits"))  # noqa: B009 - declared by every subclass, keyed by its own metrics

    @property
    def absolute(self) -> Mapping[str, Limit]:
        """The limits on the candidate's own figures, by metric."""
        return {metric: bound for metric, limit in self._limits.items() if (bound := limit.absolute)}

    @property
    def relative(self) -> Mapping[str, Limit]:
        """The limits on differences from the champion, by the compared metric."""
        return {metric: bound for metric, limit in self._limits.items() if (bound := limit.relative)}

    @property
    def compares(self) -> bool:
        """Whether the check needs the champion."""
        return bool(self.relative)

    @property
    def bounds(self) -> Mapping[str, Limit]:
        """All limits by the name of the measured metric: a difference has a name of its own."""
        return {**self.absolute, **{versus(metric): limit for metric, limit in self.relative.items()}}

    @property
    def vacancies(self) -> Mapping[str, str]:
        """What applies while no version has the alias, in words, by the compared metric."""
        consequence = {"block": "it is not measured", "pass": "it passes", None: "only the other limit applies"}
        return {
            metric: f"without a champion {consequence[self._limits[metric].without_champion]}"
            for metric in self.relative
        }

    def rows_to_agree(self, confidence: float) -> Mapping[str, int | None]:
        """Holdout rows from which on a candidate that agrees with the champion on each meets the limits relative to it,
        by the measured metric; None: no number is enough. With fewer, at best a better candidate meets them."""
        needed = {metric: self._rows_to_agree(metric, limit, confidence) for metric, limit in self.relative.items()}
        return {versus(metric): rows for metric, rows in needed.items()}

    def _rows_to_agree(self, metric: str, limit: Limit, confidence: float) -> int | None:
        """For a metric that is a share of all holdout rows; subclasses override it for other metrics."""
        return rows_to_agree(limit, confidence)

    def rival(self, subject: Subject, metric: str) -> Subject | None:
        """The champion on the candidate's rows; None if the metric is not compared, or cannot be."""
        champion = subject.champion
        if metric not in self.relative or champion is None or champion.reason is not None:
            return None
        if champion.artifact is None or champion.recipe is None:
            return None
        return replace(
            subject, artifact=champion.artifact, recipe=champion.recipe, logged={}, claim=None, champion=None
        )

    def compared(
        self, result: CheckResult, subject: Subject, difference: Callable[[str, Subject], Measurement]
    ) -> CheckResult:
        """The result with the difference of each metric that has a limit on it, or the reason why it is absent.

        difference: computes it for a metric, from the champion as `rival` gives it. It is called only if the
        candidate's own metric was measured.
        """
        missing = {one.metric: one.reason for one in result.measurements if not one.measured}
        measurements, left_out, notes = list(result.measurements), list(result.left_out), list(result.notes)
        for metric in self.relative:
            name, rival = versus(metric), self.rival(subject, metric)
            if rival is not None:
                reason = missing.get(metric)
                measurements.append(not_measured(name, reason) if reason else difference(metric, rival))
            # Without a rival: the champion cannot be compared, or none exists and the policy says block, or pass.
            elif not self._vacant(subject):
                measurements.append(not_measured(name, _why(subject)))
            elif self._limits[metric].without_champion == "block":
                reason = f"{_vacancy(subject)}, and the policy says without_champion: block"
                measurements.append(not_measured(name, reason))
            else:
                left_out.append(name)
                notes.append(
                    f"{self.name}: {metric} is not compared, as the policy allows (without_champion: pass): "
                    f"{_vacancy(subject)}"
                )
        update = {"measurements": tuple(measurements), "left_out": tuple(left_out), "notes": tuple(notes)}
        return result.model_copy(update=update)

    @staticmethod
    def _vacant(subject: Subject) -> bool:
        """Whether the alias was looked up, and no version has it."""
        return subject.champion is not None and subject.champion.version is None and subject.champion.reason is None


def _vacancy(subject: Subject) -> str:
    return f"no version has the alias {subject.champion.alias if subject.champion else ''}"


def _why(subject: Subject) -> str:
    champion = subject.champion
    if champion is None:
        return NOBODY_LOOKED
    return f"version {champion.version}, the champion, cannot be compared: {champion.reason}"
