"""The clients of a federation: how rows are partitioned among them, and their differential privacy."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Positive, Record

PartitionName = Literal["column", "iid", "dirichlet_by_class", "dirichlet_by_client", "shards", "pathological"]


class Clients(Record):
    """The partition of rows among clients: the table's client column, or a named partition.

    alpha       concentration of the Dirichlet partitions: 0.1 is very uneven, 100 nearly even
    per_client  for `shards`: shards per client; for `pathological`: classes per client
    minimum     minimum number of rows per client
    """

    partition: PartitionName = "column"
    count: Annotated[int, Field(ge=2, le=10_000)] | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    per_client: Annotated[int, Field(ge=1)] | None = None
    minimum: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if (self.partition == "column") == (self.count is not None):
            raise ValueError(
                "count: partition column takes it from the table, so remove it; every other partition needs count: 10"
            )
        if self.partition.startswith("dirichlet") != (self.alpha is not None):
            raise ValueError("alpha belongs to the Dirichlet partitions, which need it: set, for example, alpha: 0.5")
        if self.per_client is not None and self.partition not in ("shards", "pathological"):
            raise ValueError(f"per_client belongs to shards and pathological, not to {self.partition}: remove it")
        return self


class ClientPrivacy(Record):
    """Differential privacy of whole clients: DP-FedAvg, McMahan et al. 2018 (arXiv 1710.06963), with a fixed clip.

    Every client clips its update to norm `clip`. The server divides the sum by the number of clients expected in a
    round, not by the number that clients claim, and adds Gaussian noise to each coordinate with standard deviation
    noise_multiplier * clip / that number. The report states epsilon at this delta.

    noise_by  server; or clients, if each client adds its part of the noise to its own update. Noise by clients also
              protects updates from the server, but epsilon then holds only if all asked clients answer
    """

    noise_multiplier: Annotated[float, Field(ge=0)]
    clip: Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    noise_by: Annotated[Literal["server", "clients"], InDigest.IF_CHANGED] = "server"
