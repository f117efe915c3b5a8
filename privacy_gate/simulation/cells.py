"""A cell: one federated training out of a study of many. Its settings, and its random draws."""

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
"""Memory for batches that a study keeps for its next blocks, in bytes."""

UNIFORM = rule("uniform_mean")
"""The only rule that client-level differential privacy supports."""


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of whole clients: DP-FedAvg, McMahan et al. 2018 (arXiv 1710.06963), with a fixed clip.

    Every client clips its update to norm `clip`, and the server clips the updates it receives. Their sum is divided by
    the number of clients asked in the round, even if fewer answer. Each coordinate gets normal noise of standard
    deviation noise_multiplier * clip / (clients asked).

    hidden      whether the server sees only sums (secure aggregation): it then cannot clip a byzantine client's update
    by_clients  whether the clients add the noise, not the server: each client asked adds an equal part of it, so that
                the sum is as noisy. The server then cannot clip updates, and clients that do not answer add no noise
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
    """How the clients of a federation train; cells with an equal Training can train in one batch.

    rounds   number of rounds
    steps    local steps per round; None: `epochs` whole passes over the client's rows, so that large clients take more
    batch    rows per step, fewer if the client has fewer
    lr       learning rate of local stochastic gradient descent
    decay    weight decay: decay * weights is added to each gradient
    prox     FedProx: the mu of its penalty mu/2 |w - w_global|^2; Li et al. 2020 (arXiv 1812.06127)
    privacy  client-level differential privacy; None: none
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
        """Number of last rounds whose mean accuracy is the result: a tenth. The best round would be biased upwards."""
        return math.ceil(self.rounds / 10)


@dataclass(frozen=True)
class Cell:
    """One federated training.

    f          number of byzantine clients, which have the last indices; they attack only if there is an adversary
    tolerated  the f that the rule assumes; None: the true f
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
            raise ConfigurationError(f"no adversary is called {self.adversary!r}: use one of {', '.join(ADVERSARIES)}")
        if not 0 <= self.f < self.training.clients or (self.adversary is not None and self.f < 1):
            raise ConfigurationError(
                f"f is {self.f} out of {self.training.clients} clients: at least one client must be honest, and at "
                "least one byzantine if there is an adversary"
            )
        honest, bad = self.training.participants(self.byzantine)
        if self.adversary is not None and (reason := unmet_by_attack(self.adversary, honest + bad, bad)):
            raise ConfigurationError(reason)
        if self.training.privacy is not None and self.rule != UNIFORM:
            raise ConfigurationError(f"client-level privacy needs the rule {UNIFORM}, found {self.rule}")

    @property
    def byzantine(self) -> int:
        """Number of clients that attack."""
        return self.f if self.adversary is not None else 0

    @property
    def assumed(self) -> int:
        """The f that the rule assumes."""
        return self.f if self.tolerated is None else self.tolerated

    @property
    def joined(self) -> Rule:
        """The rule as the server applies it: with privacy, it first clips the updates, if it can see them."""
        privacy = self.training.privacy
        if privacy is None or privacy.hidden or privacy.by_clients:
            return self.rule
        return replace(self.rule, before=(step("clip", {"tau": privacy.clip}),))

    @property
    def attack(self) -> Adversary | None:
        """The adversary itself; None: no client attacks."""
        return None if self.adversary is None else ADVERSARIES[self.adversary]

    @property
    def poison(self) -> str | None:
        """The adversary's name if it poisons training data; if None, cells of other adversaries can share the data."""
        attack = self.attack
        return self.adversary if attack is not None and (attack.labels or attack.backdoor) else None


class Draws:
    """All random draws of a federation; each comes from its own generator, keyed by its purpose.

    The key is (stream, check, seed, client, round), never the position in a batch, so results do not depend on how
    cells are packed. Adversary and rule are not part of the key: cells that differ only in them see the same rows in
    the same order, so sampling noise does not blur their difference.

    Blocks ask for the same batches, round by round, in parallel or one block after the other. So batches are cached up
    to `memory` bytes, and later ones are drawn again. Evicting the oldest would drop each batch just before the next
    block asks for it.
    """

    def __init__(self, check: str, memory: int = KEPT_BYTES) -> None:
        self._check = int.from_bytes(check.encode())
        self._batches: dict[tuple[int, ...], tuple[Rows, Floats]] = {}
        self._room, self._lock = memory, Lock()

    def generator(self, stream: str, seed: int, *key: int) -> np.random.Generator:
        """The generator for one draw."""
        return np.random.default_rng([int.from_bytes(stream.encode()), self._check, seed, *key])

    def participants(self, training: Training, byzantine: int, seed: int, turn: int) -> list[int]:
        """The clients of round `turn`: late honest, then other honest, then byzantine; each kind in ascending order."""
        loyal = training.clients - byzantine
        honest, bad = training.participants(byzantine)
        # Full attendance without stragglers needs no draws.
        if honest == loyal and bad == byzantine and not training.stale:
            return list(range(training.clients))
        # Clients that are gone never return, so they are drawn without the round; absent and late ones per round.
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
        """`count` of the clients, ascending: those with the smallest draws.

        Each client has its own generator, so whether it is chosen ahead of another does not depend on the rest.
        """
        if count == len(clients):
            return list(clients)
        drawn = {client: self.generator(stream, seed, client, *turn).random() for client in clients}
        return sorted(sorted(clients, key=drawn.__getitem__)[:count])

    def batches(self, training: Training, size: int, seed: int, client: int, turn: int) -> tuple[Rows, Floats]:
        """Which of its `size` rows a client trains on in a round, and their weights: both (steps, batch).

        The rows are shuffled anew for each pass and cut into batches. The last batch of a pass may be short; the
        weight of a row is 1 / (rows in its batch), and 0 for padding.
        """
        # Everything that the draw depends on; check is fixed for the object.
        key = (size, seed, client, turn, training.batch, training.epochs, training.steps or 0)
        if (kept := self._batches.get(key)) is not None:
            return kept
        drawn = _cut(self.generator("batches", seed, client, turn), size, training)
        taken = sum(array.nbytes for array in drawn)
        # Blocks run in threads: two may draw the same batch, which is identical, but it must be counted once.
        with self._lock:
            if key not in self._batches and taken <= self._room:
                self._batches[key] = drawn
                self._room -= taken
        return drawn


def steps_of(training: Training, size: int) -> int:
    """Local steps per round of a client with `size` rows."""
    return training.steps if training.steps is not None else training.epochs * -(-size // training.batch)


def _cut(rng: np.random.Generator, size: int, training: Training) -> tuple[Rows, Floats]:
    """Shuffled passes over `size` rows, cut into batches and padded with 0: rows and weights, both (steps, batch)."""
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
