"""How a federated candidate was trained: its partition, its clients, and how the server aggregates their updates."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Record
from privacy_gate.dossier.federation.attendance import Attendance
from privacy_gate.dossier.federation.clients import ClientPrivacy, Clients
from privacy_gate.dossier.federation.needs import unmet, unmet_by_rows
from privacy_gate.dossier.federation.rules import Aggregator
from privacy_gate.dossier.federation.servers import ServerOptimizer

__all__ = ["Aggregator", "ClientPrivacy", "Clients", "Federation", "ServerOptimizer"]

Share = Annotated[float, Field(gt=0, le=1)]


class Federation(Record):
    """Federated training. The recipe's optimizer, epochs and batch_size apply to one client in one round.

    steps          local steps per round, instead of the recipe's epochs
    participation  share of the clients that take part in each round
    prox           mu of FedProx (Li et al. 2020)
    secure_aggregation  whether the server saw only the sum of the updates; the rule must then be a mean, and only the
                   clients themselves can have clipped their updates
    privacy        differential privacy of whole clients
    """

    clients: Clients = Clients()
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    steps: Annotated[int, Field(ge=1)] | None = None
    participation: Share = 1.0
    prox: Annotated[float, Field(ge=0)] = 0.0
    aggregator: Aggregator = Aggregator()
    server: ServerOptimizer = ServerOptimizer()
    secure_aggregation: bool = False
    privacy: Annotated[ClientPrivacy | None, InDigest.IF_CHANGED] = None

    @model_validator(mode="after")
    def _sums_join_by_means(self) -> Self:
        if self.secure_aggregation and not self.aggregator.is_mean:
            raise ValueError(
                f"secure_aggregation shows the server only the sum, but {self.aggregator} needs each client's update: "
                "use aggregator mean, or remove secure_aggregation"
            )
        if self.privacy and (not self.aggregator.is_mean or self.aggregator.cap):
            raise ValueError(
                f"privacy of clients averages clipped updates by a plain mean, not by {self.aggregator}: use mean or "
                "uniform_mean, without before and without a cap"
            )
        return self

    def unmet(self, clients: int, *, root: bool = True, rows: int | None = None) -> str | None:
        """Why the aggregator cannot aggregate updates from this many honest clients; None if it can.

        root  whether the server has rows of its own
        rows  rows that all clients together train on; None: enough
        """
        # With a client column every client named in it has a row, so only counted clients can run out of rows.
        if self.clients.count is not None and rows is not None:
            reason = unmet_by_rows(rows, clients, self.clients.minimum)
            if reason:
                return reason
        attendance = Attendance(clients, self.participation)
        return unmet(self.aggregator.steps, self.aggregator.tolerates, attendance, root=root)
