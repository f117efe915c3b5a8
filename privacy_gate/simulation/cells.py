"""One federated training among many: what it is made of, and the random draws that are its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.dossier.federation.attendance import Attendance
from privacy_gate.dossier.federation.needs import unmet_by_attack
from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.adversaries import ADVERSARIES, Adversary
from privacy_gate.simulation.partitions import Partition, Rows
from privacy_gate.simulation.rules.aggregators import Rule, rule, step
from privacy_gate.simulation.servers import Server

KEPT_BYTES = 256 << 20
"""What the batches of a study that are kept for its next blocks may take."""

UNIFORM = rule("uniform_mean")
"""The only rule that goes with privacy of clients."""


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of whole clients: DP-FedAvg, McMahan et al. 2018 (arXiv 1710.06963), with a fixed clip.

    Every client shortens its update to norm `clip`, and so does a server with what it receives. Their sum is divided by
    the number of clients asked in a round, also where fewer answer, and each coordinate gets normal noise of standard
    deviation noise_multiplier * clip / that number.

    hidden      whether the server sees sums alone: then nobody shortens what a byzantine client sends
    by_clients  whether the noise is not the server's: each client asked adds as much as makes the sum that noisy, and
                nobody else can then shorten what it sends. Where clients do not answer, their noise is missing
    """

    noise_multiplier: float
    clip: float
    hidden: bool = False
    by_clients: bool = False

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and self.clip > 0):
            raise ConfigurationError(f"{self} is out of range: expected noise_multiplier >= 0 and clip > 0")


@dataclass(frozen=True)
class Training(Attendance):
    """How the clients of a federation train; cells that share it train in one batch.

    rounds, and
    steps   local steps a round, or None: whole epochs over the client's rows, so that large clients take more
    batch   rows of one step, fewer where the client has fewer
    lr      of local stochastic gradient descent; decay: added as decay * weights to each gradient
    prox    FedProx: mu of the pull mu/2 |w - w_global|^2; Li et al. 2020 (arXiv 1812.06127)
    privacy of clients; None: without
    """

    rounds: int = 150
    steps: int | None = 1
    epochs: int = 1
    batch: int = 32
    lr: float = 0.1
    decay: float = 0.0
    prox: float = 0.0
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.rounds, self.epochs, self.batch, 1 if self.steps is None else self.steps)
        if min(counts) < 1 or not (self.lr > 0 and self.prox >= 0 and self.decay >= 0):
            raise ConfigurationError(
                f"{self} is out of range: expected counts of at least 1, lr > 0, and prox and decay >= 0"
            )

    @property
    def last(self) -> int:
        """Rounds whose mean accuracy is the result: the last tenth. The best of all rounds would flatter."""
        return math.ceil(self.rounds / 10)


@dataclass(frozen=True)
class Cell:
    """One federated training.

    f          byzantine clients, the last of all; they attack only where there is an adversary
    tolerated  the f that the rule is told; None: f
    """

    rule: Rule = field(default_factory=Rule)
    adversary: str | None = None
    f: int = 0
    tolerated: int | None = None
    partition: Partition = field(default_factory=Partition)
    seed: int = 0
    training: Training = field(default_factory=Training)
    server: Server = field(default_factory=Server)

    def __post_init__(self) -> None:
        if self.adversary is not None and self.adversary not in ADVERSARIES:
            raise ConfigurationError(f"no adversary is called {self.adversary!r}: choose of {', '.join(ADVERSARIES)}")
        if not 0 <= self.f < self.training.clients or (self.adversary is not None and self.f < 1):
            raise ConfigurationError(
                f"f is {self.f} of {self.training.clients} clients, expected at least one honest client, and at "
                "least one byzantine where there is an adversary"
            )
        honest, bad = self.training.participants(self.byzantine)
        if self.adversary is not None and (reason := unmet_by_attack(self.adversary, honest + bad, bad)):
            raise ConfigurationError(reason)
        if self.training.privacy is not None and self.rule != UNIFORM:
            raise ConfigurationError(f"privacy of clients needs the rule {UNIFORM}, found {self.rule}")

    @property
    def byzantine(self) -> int:
        """How many clients attack."""
        return self.f if self.adversary is not None else 0

    @property
    def told(self) -> int:
        """The f that the rule is called with."""
        return self.f if self.tolerated is None else self.tolerated

    @property
    def joined(self) -> Rule:
        """What the server does with the updates it receives: the rule; with privacy, first it shortens what it sees."""
        privacy = self.training.privacy
        if privacy is None or privacy.hidden or privacy.by_clients:
            return self.rule
        return replace(self.rule, before=(step("clip", {"tau": privacy.clip}),))

    @property
    def attack(self) -> Adversary | None:
        return None if self.adversary is None else ADVERSARIES[self.adversary]

    @property
    def poison(self) -> str | None:
        """The adversary, where it changes what is trained on; else the data of the round is everyone's."""
        attack = self.attack
        return self.adversary if attack is not None and (attack.labels or attack.backdoor) else None


class Draws:
    """Everything random in a federation, each draw from a generator of its own, keyed by what it is for.

    The key is (stream, check, seed, client, round), never the place in a batch, so results do not depend on how
    cells are packed. Adversary and rule are not in it: cells that differ only in them see the same rows in the same
    order, and their difference is not blurred by chance.

    Blocks ask for the same batches, round by round, side by side or one block after the other. So batches are kept up
    to `memory` bytes, and then drawn anew: to drop the oldest would drop each just before the next block wants it.
    """

    def __init__(self, check: str, memory: int = KEPT_BYTES) -> None:
        self._check = int.from_bytes(check.encode())
        self._batches: dict[tuple[int, ...], tuple[Rows, Floats]] = {}
        self._room, self._lock = memory, Lock()

    def generator(self, stream: str, seed: int, *key: int) -> np.random.Generator:
        """The generator of one draw."""
        return np.random.default_rng([int.from_bytes(stream.encode()), self._check, seed, *key])

    def participants(self, training: Training, byzantine: int, seed: int, turn: int) -> list[int]:
        """The clients of round `turn`, each kind ascending: those that are late, other honest ones, byzantine ones."""
        loyal = training.clients - byzantine
        honest, bad = training.participants(byzantine)
        if honest == loyal and bad == byzantine and not training.stale:
            return list(range(training.clients))
        there = self._first(range(loyal), training.reachable(byzantine) - byzantine, "gone", seed)
        asked, others = training.asked(byzantine)
        if asked < len(there) or others < byzantine:
            order = [int(client) for client in self.generator("participants", seed, turn).permutation(training.clients)]
            there = sorted([client for client in order if client in there][:asked])
            attackers = sorted([client for client in order if client >= loyal][:bad])
        else:
            attackers = list(range(loyal, training.clients))
        present = self._first(there, honest, "absent", seed, turn)
        late = self._first(present, training.late(byzantine, turn), "stale", seed, turn)
        return [*late, *(client for client in present if client not in late), *attackers]

    def _first(self, clients: Sequence[int], count: int, stream: str, seed: int, *turn: int) -> list[int]:
        """As many of the clients as asked for, ascending: those with the smallest draws, each client's its own."""
        if count == len(clients):
            return list(clients)
        drawn = {client: self.generator(stream, seed, client, *turn).random() for client in clients}
        return sorted(sorted(clients, key=drawn.__getitem__)[:count])

    def batches(self, training: Training, size: int, seed: int, client: int, turn: int) -> tuple[Rows, Floats]:
        """Which of its `size` rows a client trains on in a round, and their weights: both (steps, batch).

        One shuffled pass after the other, cut into batches; the last of a pass may be shorter: its weights are
        1 / rows, and 0 where there is no row.
        """
        key = (size, seed, client, turn, training.batch, training.epochs, training.steps or 0)
        if (kept := self._batches.get(key)) is not None:
            return kept
        drawn = _cut(self.generator("batches", seed, client, turn), size, training)
        taken = sum(each.nbytes for each in drawn)
        with self._lock:
            if key not in self._batches and taken <= self._room:
                self._batches[key] = drawn
                self._room -= taken
        return drawn


def steps_of(training: Training, size: int) -> int:
    """Local steps of a client with so many rows."""
    return training.steps if training.steps is not None else training.epochs * -(-size // training.batch)


def _cut(rng: np.random.Generator, size: int, training: Training) -> tuple[Rows, Floats]:
    steps, width = steps_of(training, size), training.batch
    chosen, weight = np.zeros((steps, width), dtype=np.int64), np.zeros((steps, width), dtype=np.float64)
    done = 0
    while done < steps:
        order = rng.permutation(size)
        for first in range(0, size, width):
            if done == steps:
                break
            rows = order[first : first + width]
            chosen[done, : len(rows)], weight[done, : len(rows)] = rows, 1 / len(rows)
            done += 1
    return chosen, weight
