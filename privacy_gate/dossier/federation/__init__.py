"""How a federated candidate was trained: who holds what, how clients train, how the server joins their updates."""

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
    privacy: Annotated[ClientPrivacy | None, InDigest.IF_CHANGED] = None

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

    def unmet(self, clients: int, *, root: bool = True, rows: int | None = None) -> str | None:
        """Why its own rule cannot join what so many clients send, nobody of whom attacks; None where it can.

        root  whether the server has rows of its own
        rows  that all clients together are trained on; None: as many as need be
        """
        if self.clients.count is not None and rows is not None:  # a column gives every client it names a row
            scarce = unmet_by_rows(rows, clients, self.clients.minimum)
            if scarce:
                return scarce
        attendance = Attendance(clients, self.participation)
        return unmet(self.aggregator.steps, self.aggregator.tolerates, attendance, root=root)
