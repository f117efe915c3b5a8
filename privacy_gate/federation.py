"""How a federated candidate was trained: who holds what, how clients train, how the server joins their updates."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from privacy_gate.documents import Record

PartitionName = Literal["column", "iid", "dirichlet_by_class", "dirichlet_by_client", "shards", "pathological"]
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

SERVER_PARAMETERS = {"momentum": ("avgm", "adam", "yogi"), "decay": ("adam", "yogi"), "tau": ("adam", "yogi")}
"""Likewise of server optimisers."""

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _refuse_misplaced(name: str, given: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where a parameter is given that `name` has not."""
    for parameter, owners in known.items():
        if parameter in given and name not in owners:
            raise ValueError(f"{name} has no parameter {parameter}; that is one of {', '.join(owners)}")


def _given(record: Record, known: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are set."""
    return {name: getattr(record, name) for name in known if getattr(record, name) is not None}


class Clients(Record):
    """Who holds what: the table's client column as it is, or a partition by name.

    alpha       of the Dirichlet partitions: .1 is very uneven, 100 nearly even
    per_client  shards of each client; of `pathological`: classes of each client
    minimum     fewest rows a client holds
    """

    partition: PartitionName = "column"
    count: Annotated[int, Field(ge=2, le=10_000)] | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    per_client: Annotated[int, Field(ge=1)] | None = None
    minimum: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if (self.partition == "column") == (self.count is not None):
            raise ValueError("a client column counts its clients itself; every other partition needs count: 10 or so")
        if self.partition.startswith("dirichlet") != (self.alpha is not None):
            raise ValueError("alpha belongs to the Dirichlet partitions, and they need it: alpha: 0.5")
        if self.per_client is not None and self.partition not in ("shards", "pathological"):
            raise ValueError(f"per_client belongs to shards and pathological, not to {self.partition}")
        return self


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
        _refuse_misplaced(self.name, self.parameters, BEFORE_PARAMETERS)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """Those that are set."""
        return _given(self, BEFORE_PARAMETERS)


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
    iterations: Annotated[int, Field(ge=1, le=1000)] | None = None
    q: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        _refuse_misplaced(self.name, _given(self, PARAMETERS), PARAMETERS)
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
        return *before, (self.name, _given(self, PARAMETERS))

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean of the updates as they come."""
        return self.name in ("mean", "uniform_mean") and not self.before

    def __str__(self) -> str:
        return " + ".join(name for name, _ in self.steps)


class ServerOptimizer(Record):
    """What the server does with the joined update: avg adds it; avgm, adam and yogi are Reddi et al. 2021's.

    tau  what adam and yogi add to the square root they divide by: 0.001 unless set
    """

    name: Literal["avg", "avgm", "adam", "yogi"] = "avg"
    lr: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive | None = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        # A value that is the default's changes nothing, and a recipe that was read and written again holds all of them.
        changed = [name for name in SERVER_PARAMETERS if getattr(self, name) != type(self).model_fields[name].default]
        _refuse_misplaced(self.name, dict.fromkeys(changed), SERVER_PARAMETERS)
        return self


class ClientPrivacy(Record):
    """Differential privacy of whole clients: DP-FedAvg, McMahan et al. 2018 (arXiv 1710.06963), with a fixed clip.

    Every client shortens its update to norm `clip`; the server divides their sum by the number of clients it expects in
    a round, whatever they claim, and adds normal noise of noise_multiplier * clip / that number to each coordinate.
    delta is the epsilon's that the report states.

    noise_by  server; or clients, each of whom adds as much to its update as makes the sum so noisy. Only then is a
              server that would look at updates shown less of them; only if all who are asked answer, epsilon holds
    """

    noise_multiplier: Annotated[float, Field(ge=0)]
    clip: Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    noise_by: Literal["server", "clients"] = "server"


class Federation(Record):
    """Federated training; the recipe's optimiser, epochs and batch_size are those of a client in one round.

    steps          local steps of a round, in place of the recipe's epochs
    participation  share of the clients that take part in a round
    prox           FedProx's mu (Li et al. 2020)
    secure_aggregation  the server saw sums alone: no rule but a mean could have been used, and none but the clients
                   themselves can have shortened what they sent
    privacy        of whole clients, whatever they hold
    """

    clients: Clients = Clients()
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    steps: Annotated[int, Field(ge=1)] | None = None
    participation: Share = 1.0
    prox: Annotated[float, Field(ge=0)] = 0.0
    aggregator: Aggregator = Aggregator()
    server: ServerOptimizer = ServerOptimizer()
    secure_aggregation: bool = False
    privacy: ClientPrivacy | None = None

    @model_validator(mode="after")
    def _sums_join_by_means(self) -> Self:
        if self.secure_aggregation and not self.aggregator.is_mean:
            raise ValueError(
                f"secure aggregation shows the server a sum alone; {self.aggregator} needs each client's update"
            )
        if self.privacy and (not self.aggregator.is_mean or self.aggregator.cap):
            raise ValueError(
                f"privacy of clients joins shortened updates by a plain mean, not by {self.aggregator}: use mean or "
                "uniform_mean, without anything before it and without a cap"
            )
        return self
