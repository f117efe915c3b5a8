"""How a federated candidate was trained: who holds what, how clients train, how the server joins their updates."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    "q": ("q_fedavg",),
}
"""Parameters of rules, and which rules have them."""

Share = Annotated[float, Field(gt=0, le=1)]


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


class Aggregator(Record):
    """How the server joins updates: a rule, what is done before it, and how many byzantine clients it is told of.

    cap, nu, tau, q  parameters of the rules that have them: see federated/
    """

    name: AggregatorName = "mean"
    before: tuple[BeforeName, ...] = ()
    tolerates: Annotated[int, Field(ge=0)] = 0
    cap: Annotated[float, Field(gt=0)] | None = None
    nu: Annotated[float, Field(gt=0)] | None = None
    tau: Annotated[float, Field(gt=0)] | None = None
    q: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        for name, rules in PARAMETERS.items():
            if getattr(self, name) is not None and self.name not in rules:
                raise ValueError(f"{self.name} has no parameter {name}; that is one of {', '.join(rules)}")
        return self

    def __str__(self) -> str:
        return " + ".join([*self.before, self.name])


class ServerOptimizer(Record):
    """What the server does with the joined update: avg adds it; avgm, adam and yogi are Reddi et al. 2021's."""

    name: Literal["avg", "avgm", "adam", "yogi"] = "avg"
    lr: Annotated[float, Field(gt=0)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Federation(Record):
    """Federated training; the recipe's optimiser, epochs and batch_size are those of a client in one round.

    steps          local steps of a round, in place of the recipe's epochs
    participation  share of the clients that take part in a round
    prox           FedProx's mu (Li et al. 2020)
    secure_aggregation  the server saw sums alone: robust rules other than clipping could not have been used
    """

    clients: Clients = Clients()
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    steps: Annotated[int, Field(ge=1)] | None = None
    participation: Share = 1.0
    prox: Annotated[float, Field(ge=0)] = 0.0
    aggregator: Aggregator = Aggregator()
    server: ServerOptimizer = ServerOptimizer()
    secure_aggregation: bool = False

    @model_validator(mode="after")
    def _sums_join_by_means(self) -> Self:
        if self.secure_aggregation and (self.aggregator.name not in ("mean", "uniform_mean") or self.aggregator.before):
            raise ValueError(
                f"secure aggregation shows the server a sum alone; {self.aggregator.name} needs each client's update"
            )
        return self
