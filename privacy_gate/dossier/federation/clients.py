"""The clients of a federation: who holds what, and what protects them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Positive, Record

PartitionName = Literal["column", "iid", "dirichlet_by_class", "dirichlet_by_client", "shards", "pathological"]


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
    noise_by: Annotated[Literal["server", "clients"], InDigest.IF_CHANGED] = "server"
