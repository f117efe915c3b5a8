"""What every check is: settings and limits from the policy; jobs it needs; measurements it makes."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, ClassVar, Self

from numpy.typing import NDArray
from pydantic import model_validator

from privacy_gate.attacks.release import Release
from privacy_gate.documents import Record, nearest
from privacy_gate.dossier.candidate import Claim
from privacy_gate.dossier.champion import Champion
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Job, Keeps
from privacy_gate.metrics.catalogue import find
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

Results = Callable[[Job], Mapping[str, NDArray[Any]]]
"""The stored arrays of a job; raises UndecidedError where they are missing."""


def asks_nothing(metric: str, limit: Limit) -> bool:
    """Whether no figure can violate the limit, which then asks only that there is one.

    >>> asks_nothing("auc", Limit(max=1)), asks_nothing("holdout_accuracy", Limit(min=0.1))
    (True, False)
    """
    record = find(metric)
    return record is not None and record.always_meets(limit)


@dataclass(frozen=True)
class Subject:
    """What is judged: the recipe, the artifact's digest, the audit data, metrics the run logged, a DP claim, the digest
    of the federation's round log, and the version promoted now; None if nobody looked for one.

    release  what an attacker sees of the model
    keeps    what the policy's attacks need of the weights of the candidate and its references
    """

    recipe: Recipe
    artifact: str
    data: AuditData
    logged: Mapping[str, float]
    claim: Claim | None = None
    rounds: str | None = None
    champion: Champion | None = None
    release: Release = field(default_factory=Release)
    keeps: Keeps = ()


class Check(Record):
    """One check of a policy. Subclasses add a `check` literal, settings, and limits on the metrics they measure."""

    title: ClassVar[str] = ""
    """The check's heading in reports; by default its name."""

    attack_class: ClassVar[str | None] = None
    """The class of attacks in reports/references.json, and so in public taxonomies, that the check tests, if any."""

    by_references: ClassVar[bool] = False
    """Whether its figures are those of the attacker in the report's threat model, who trains reference models."""

    left_open: ClassVar[str | None] = None
    """Listed by reports as not tested if the policy lacks the check; None if nothing is to be listed."""

    federated: ClassVar[bool] = False
    """Whether `left_open` is listed only of candidates that a federation trained, or if the policy asks for another
    check of federations."""

    tiered: ClassVar[bool] = False
    """Whether the check measures more the more the dossier declares: reports then state the evidence tier. The others
    need members and holdout alone."""

    reads_rounds: ClassVar[bool] = False
    """Whether the check needs the candidate's round log, which may be large."""

    @model_validator(mode="after")
    def _limits_are_shares(self) -> Self:
        """A limit of 5 where 5 % is meant would let everything pass."""
        for metric, limit in self.bounds.items():
            side, edge = ("max", limit.max) if limit.max is not None else ("min", limit.min or 0.0)
            record = find(metric)
            if abs(edge) > 1 and (record is None or record.around_one):
                raise ValueError(
                    f"limits: {metric}: {side} {edge:g} is outside -1 to 1: write {edge / 100:g} for {edge:g} %"
                )
        return self

    @property
    def name(self) -> str:
        """The check's name in policies and reports."""
        return str(getattr(self, "check"))  # noqa: B009 - declared by every subclass as its literal

    @property
    def bounds(self) -> Mapping[str, Limit]:
        """The check's limits by metric."""
        return dict(getattr(self, "limits"))  # noqa: B009 - declared by every subclass, keyed by its own metrics

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """Holdout rows below which not even the best outcome meets the limit, by metric; None: however many there are.

        The rest of the table is taken to be as large as it need be. A metric stands here only if its need is known.
        """
        return {}

    def attacks_tried(self, release: Release, recipe: Recipe) -> tuple[str, ...]:
        """The membership attacks that the check tries on a candidate of this recipe, by name: none by default."""
        return ()

    @abstractmethod
    def jobs(self, subject: Subject) -> list[Job]:
        """Everything the check needs computed, the same list on every machine."""

    @abstractmethod
    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Measurements of exactly the metrics that limits can name, measured or with the reason why not."""


NO_FEDERATION = "the recipe declares no federation"


class WhereDeclared(Check):
    """A check of what only some dossiers declare: a federation, clients, groups.

    required  where it is not declared, the metrics are not measured, and limits on them not met. `required: false` is
              the policy owner's own leave: a recipe without federation, or a table without clients or groups, is then
              let pass these limits, whether there was one or not; notes say so
    """

    required: bool = True

    def undeclared(self, reasons: Mapping[str, str]) -> CheckResult:
        """Metrics, and why the dossier declares too little for each: not measured, or left out by leave."""
        if self.required:
            return CheckResult(measurements=tuple(not_measured(metric, why) for metric, why in reasons.items()))
        notes = (f"{self.name}: left out by the policy's leave, since {why}" for why in dict.fromkeys(reasons.values()))
        return CheckResult(measurements=(), left_out=tuple(reasons), notes=tuple(notes))


def distinct_names(names: tuple[str, ...], known: Iterable[str], kind: str) -> tuple[str, ...]:
    """The names, where each is known and stands once; raises ValueError, for use in validators."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"no {kind} is called '{name}'; {nearest(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"an {kind} is listed twice")
    return names


def in_percent(measurement: Measurement) -> str:
    """The figure and its interval, its ends rounded outward, for remedies and notes."""
    if measurement.value is None or measurement.low is None or measurement.high is None:
        return "not measured"
    low, value, high = (
        Decimal(repr(end)).scaleb(2).quantize(Decimal("0.1"), side) + 0  # + 0: no -0.0
        for end, side in (
            (measurement.low, ROUND_FLOOR),
            (measurement.value, ROUND_HALF_EVEN),
            (measurement.high, ROUND_CEILING),
        )
    )
    return f"{value} % [{low}, {high}]".replace("-", "−")
