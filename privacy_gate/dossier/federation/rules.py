"""How a server aggregates the updates of a round."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from privacy_gate.documents import InDigest, Positive, Record
from privacy_gate.dossier.federation.parameters import given, refuse_misplaced

AggregatorName = Literal[
    "mean",
    "uniform_mean",
    "capped_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping",
    "minimum_diameter",
    "meamed",
    "norm_clipping",
    "fltrust",
    "q_fedavg",
]
BeforeName = Literal["nnm", "bucketing", "clip", "arc"]

PARAMETERS = {
    "cap": ("mean", "capped_mean"),
    "nu": ("geometric_median",),
    "tau": ("centered_clipping", "norm_clipping"),
    "iterations": ("centered_clipping", "geometric_median"),
    "q": ("q_fedavg",),
}
"""Rules that have a parameter, by parameter."""

BEFORE_PARAMETERS = {"tau": ("clip",), "size": ("bucketing",)}
"""Steps before a rule that have a parameter, by parameter."""


class Before(Record):
    """A step before the rule, with its parameters. A step without parameters can be given by its name alone.

    tau   for clip: the norm to which updates are clipped; default: the median of their norms
    size  for bucketing: the number of updates averaged in one bucket; default: 2
    """

    name: BeforeName
    tau: Positive | None = None
    size: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        refuse_misplaced(self.name, self.parameters, BEFORE_PARAMETERS)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that are set."""
        return given(self, BEFORE_PARAMETERS)


# Without the tag, an error would list the faults of both alternatives, the name and the mapping.
AnyBefore = Annotated[
    Annotated[BeforeName, Tag("name")] | Annotated[Before, Tag("settings")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "settings"),
]


class Aggregator(Record):
    """How the server aggregates updates: a rule, the steps before it, and their parameters.

    tolerates  number of byzantine clients for which the rule and the steps are set up
    cap, nu, tau, iterations, q  parameters of some rules: see PARAMETERS and simulation/rules/
    """

    name: AggregatorName = "mean"
    before: tuple[AnyBefore, ...] = ()
    tolerates: Annotated[int, Field(ge=0)] = 0
    cap: Positive | None = None
    nu: Positive | None = None
    tau: Positive | None = None
    iterations: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, InDigest.IF_CHANGED] = None
    q: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        refuse_misplaced(self.name, given(self, PARAMETERS), PARAMETERS)
        return self

    @model_validator(mode="after")
    def _buckets_once(self) -> Self:
        buckets = [name for name, _ in self.steps].count("bucketing")
        if buckets > 1:
            raise ValueError("before: bucketing can be used only once: give it a larger size")
        if buckets and self.name == "q_fedavg":
            raise ValueError("q_fedavg needs each client's loss, and a bucket has none: remove bucketing")
        return self

    @property
    def steps(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The steps applied to the updates, in order: names, with the parameters that are set. The rule is last."""
        before = [(step, {}) if isinstance(step, str) else (step.name, step.parameters) for step in self.before]
        return *before, (self.name, given(self, PARAMETERS))

    @property
    def is_mean(self) -> bool:
        """Whether it is a plain mean of the unchanged updates."""
        return self.name in ("mean", "uniform_mean") and not self.before

    def __str__(self) -> str:
        return " + ".join(name for name, _ in self.steps)
