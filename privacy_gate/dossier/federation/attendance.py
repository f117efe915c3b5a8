"""How many of a federation's clients send an update in a round. Asked before anything is trained: no torch here."""

import math
from dataclasses import dataclass

from privacy_gate.errors import ConfigurationError


@dataclass(frozen=True)
class Attendance:
    """Who of the clients is there.

    participation  share of clients that are asked to take part in a round
    gone    share of clients that never take part, the same ones in every round
    absent  share of those asked that do not answer, others in each round
    stale   share of a round's updates that arrive a round late: changes of the model of the round before, made on
            this round's batches; none in the first round

    Byzantine clients are never gone, absent or late.
    """

    clients: int = 10
    participation: float = 1.0
    gone: float = 0.0
    absent: float = 0.0
    stale: float = 0.0

    def __post_init__(self) -> None:
        shares = all(0 <= share < 1 for share in (self.gone, self.absent, self.stale))
        if self.clients < 1 or not 0 < self.participation <= 1 or not shares:
            raise ConfigurationError(
                f"{self} is out of range: expected at least 1 client, 0 < participation <= 1, and gone, absent and "
                "stale >= 0 and < 1"
            )

    def reachable(self, byzantine: int) -> int:
        """Clients that are not gone, so many byzantine and at least one honest."""
        loyal = self.clients - byzantine
        return self.clients - min(round(self.gone * self.clients), loyal - 1)

    def asked(self, byzantine: int) -> tuple[int, int]:
        """Honest and byzantine clients asked in a round: the byzantine's share of it rounded up, never everyone."""
        there = self.reachable(byzantine)
        most = max(1, round(self.participation * there))
        bad = min(math.ceil(byzantine * most / there), most - 1)
        return most - bad, bad

    def participants(self, byzantine: int) -> tuple[int, int]:
        """Honest and byzantine clients that send an update in a round, at least one honest."""
        honest, bad = self.asked(byzantine)
        return max(1, honest - round(self.absent * (honest + bad))), bad

    def late(self, byzantine: int, turn: int) -> int:
        """Honest updates of round `turn` that are stale."""
        honest, bad = self.participants(byzantine)
        return min(honest, round(self.stale * (honest + bad))) if turn else 0
