"""How many clients of a federation send an update in a round. Used before training starts, so without torch."""

import math
from dataclasses import dataclass

from privacy_gate.errors import ConfigurationError


@dataclass(frozen=True)
class Attendance:
    """The attendance of clients in the rounds of a federation.

    participation  share of clients that are asked to take part in a round
    gone    share of clients that never take part, the same ones in every round
    absent  share of the asked clients that do not answer, drawn anew in each round
    stale   share of a round's updates that arrive one round late: they start from the model of the round before and
            train on this round's batches; none in the first round

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
        """Number of clients that are not gone, with this many byzantine clients and at least one honest client."""
        honest = self.clients - byzantine
        return self.clients - min(round(self.gone * self.clients), honest - 1)

    def asked(self, byzantine: int) -> tuple[int, int]:
        """Numbers of honest and byzantine clients asked in a round, at least one of them honest."""
        reachable = self.reachable(byzantine)
        asked = max(1, round(self.participation * reachable))
        # The byzantine share of the asked clients is rounded up, in favour of the attacker.
        bad = min(math.ceil(byzantine * asked / reachable), asked - 1)
        return asked - bad, bad

    def participants(self, byzantine: int) -> tuple[int, int]:
        """Numbers of honest and byzantine clients that send an update in a round, at least one of them honest."""
        honest, bad = self.asked(byzantine)
        return max(1, honest - round(self.absent * (honest + bad))), bad

    def late(self, byzantine: int, turn: int) -> int:
        """Number of stale honest updates in round `turn`, counted from 0."""
        honest, bad = self.participants(byzantine)
        return min(honest, round(self.stale * (honest + bad))) if turn else 0
