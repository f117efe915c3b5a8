"""How a server joins the updates of a round."""

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
"""Parameters of rules, and which rules have them."""

BEFORE_PARAMETERS = {"tau": ("clip",), "size": ("bucketing",)}
"""Likewise of what stands before a rule."""


class Before(Record):
    """What is done to updates before a rule, where it has a parameter of its own; else its name will do.

    tau   of clip: the norm that updates are shortened to, in place of the median of their norms
    size  of bucketing: how many updates are averaged at a time, in place of 2
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
        """Those that are set."""
        return given(self, BEFORE_PARAMETERS)


# The tag, so that an error speaks of what was written alone.
AnyBefore = Annotated[
    Annotated[BeforeName, Tag("name")] | Annotated[Before, Tag("settings")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "settings"),
]


class Aggregator(Record):
    """How the server joins updates: a rule, what is done before it, and how many byzantine clients it is told of.

    cap, nu, tau, iterations, q  parameters of the rules that have them: see federated/
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
            raise ValueError("bucketing can stand before a rule once: give it a larger size")
        if buckets and self.name == "q_fedavg":
            raise ValueError("q_fedavg needs each client's loss, and a bucket has none: remove bucketing")
        return self

    @property
    def steps(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """What is done to the updates, in order: by name, with the parameters that are set."""
        before = [(one, {}) if isinstance(one, str) else (one.name, one.parameters) for one in self.before]
        return *before, (self.name, given(self, PARAMETERS))

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean of the updates as they come."""
        return self.name in ("mean", "uniform_mean") and not self.before

    def __str__(self) -> str:
        return " + ".join(name for name, _ in self.steps)
