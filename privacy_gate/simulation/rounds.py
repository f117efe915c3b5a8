"""The rounds of one block of federations: local training, attack, aggregation, server step. Axis letters: local.py."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.adversaries import ADVERSARIES, Adversary, Scene, trained
from privacy_gate.simulation.blocks import Block
from privacy_gate.simulation.cells import Cell, Draws, Privacy, steps_of
from privacy_gate.simulation.learner import Learner
from privacy_gate.simulation.local import Batches
from privacy_gate.simulation.partitions import Rows
from privacy_gate.simulation.places import Places
from privacy_gate.simulation.rules.aggregators import Rule
from privacy_gate.simulation.rules.clipping import clip
from privacy_gate.simulation.rules.known import Known

Key = TypeVar("Key")


class BlockTraining:
    """A block of cells in training: models (A G, P), what their servers remember, and the next round."""

    def __init__(
        self, learner: Learner, cells: Sequence[Cell], block: Block, parts: Sequence[Sequence[Rows]], draws: Draws
    ) -> None:
        self._learner, self._block, self._parts, self._draws = learner, block, parts, draws
        self._cells = [cells[place] for place in block.order]
        self._turn = 0
        self.models = learner.start([cell.seed for cell in self._cells])
        self._previous: torch.Tensor | None = None
        self._before = self.models.clone() if block.training.stale else self.models
        self._rules = self._places([(cell.joined, cell.told) for cell in self._cells], nested=True)
        self._adversaries = self._places([cell.adversary for cell in self._cells if cell.adversary])
        self._searched = {
            name: self._places([(cell.joined, cell.told) for cell in self._cells if cell.adversary == name])
            for name in self._adversaries
        }
        self._source = torch.arange(len(self._cells), device=learner.device) % len(block.sources)
        self._servers = self._places([cell.server for cell in self._cells])
        self._states = {server: server.start(places.of(self.models)) for server, places in self._servers.items()}
        named = {step.name for rule, _ in self._rules for step in (*rule.before, rule.aggregator)}
        self._rooted, self._losses, self._shuffled = (name in named for name in ("fltrust", "q_fedavg", "bucketing"))
        # Byzantine clients that send no more than what follows from others' updates need not train.
        self._idle = not self._losses and not any(ADVERSARIES[name].own for name in self._adversaries)
        if self._rooted and not len(learner.root):
            raise ConfigurationError(
                "fltrust needs rows of the server's own: give root samples, or choose another rule"
            )

    def advance(self) -> None:
        """One round of every cell."""
        training = self._block.training
        present = [
            self._draws.participants(training, self._block.byzantine, source.seed, self._turn)
            for source in self._block.sources
        ]
        clients = len(present[0])
        updates, losses = self._trained(self._batches(present))
        known = Known(
            counts=self._counts(present),
            previous=self._previous,
            root=updates[:, clients] if self._rooted else None,
            losses=None if losses is None else losses[:, :clients],
            order=self._order(clients) if self._shuffled else None,
            lr=training.lr,
        )
        updates = updates[:, :clients]
        if training.privacy:
            updates = clip(updates, 0, tau=training.privacy.clip)
        self._attack(updates, known)
        self._previous = _aggregate(self._rules, updates, known)
        if training.privacy:
            self._previous = self._private(self._previous, training.privacy, clients)
        if training.stale:
            self._before.copy_(self.models)
        for server, places in self._servers.items():
            step, self._states[server] = server.step(places.of(self._previous), self._states[server])
            places.put(self.models, places.of(self.models) + step)
        self._turn += 1

    def _trained(self, batches: Batches) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Updates (A G, K, P), and where a rule wants them losses (A G, K); clients that are late stand first."""
        training = self._block.training
        late = training.late(self._block.byzantine, self._turn)
        found = []
        for models, clients in ((self._before, slice(0, late)), (self.models, slice(late, None))):
            if clients.stop == 0:
                continue
            start = models.view(-1, len(self._block.sources), models.shape[1])
            found.append(self._learner.updates(start, batches.at(slice(None), clients), training, self._losses))
        updates = torch.cat([update for update, _ in found], 2) if late else found[0][0]
        losses = torch.cat([loss for _, loss in found if loss is not None], 2) if self._losses else None
        return updates.flatten(0, 1), None if losses is None else losses.flatten(0, 1)

    def _each(self, values: torch.Tensor, places: Places | None = None) -> torch.Tensor:
        """Values (G, ...) of the sources, for every cell or for some: (A G, ...)."""
        return values[self._source if places is None else places.of(self._source)]

    def _on_device(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._learner.device)

    def _batches(self, present: list[list[int]]) -> Batches:
        """What everyone trains on: (G, K, S, B), the server itself last where it trains."""
        training, root = self._block.training, [self._block.training.clients] * self._rooted
        held = [[*parts, self._learner.root] for parts in self._parts]
        steps = max(
            steps_of(training, len(rows[client]))
            for rows, chosen in zip(held, present, strict=True)
            for client in chosen + root
        )
        shape = (len(present), len(present[0]) + self._rooted, steps, training.batch)
        idle = range(len(present[0]) - self._bad(), len(present[0])) if self._idle else range(0)
        rows, weight = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        for group, (source, chosen) in enumerate(zip(self._block.sources, present, strict=True)):
            for place, client in enumerate(chosen + root):
                if place in idle:
                    continue
                mine = held[group][client]
                drawn, share = self._draws.batches(training, len(mine), source.seed, client, self._turn)
                rows[group, place, : len(drawn)], weight[group, place, : len(drawn)] = mine[drawn], share
        label = self._learner.label[rows]
        self._poison(rows, label, len(present[0]))
        return Batches(self._on_device(rows), self._on_device(label), self._on_device(weight).to(self._learner.dtype))

    def _poison(self, rows: Rows, label: NDArray[np.int64], clients: int) -> None:
        """Changes what byzantine clients train on, in place."""
        bad = self._bad()
        for group, source in enumerate(self._block.sources):
            attack = ADVERSARIES[source.poison] if source.poison else None
            mine = (group, slice(clients - bad, clients))
            if attack and attack.labels:
                label[mine] = attack.labels(self._learner.classes)[label[mine]]
            if attack and attack.backdoor:
                if self._learner.triggered is None:
                    raise ConfigurationError("a backdoor needs features of triggered images, and the samples have none")
                shown = (*mine, slice(None), slice(0, max(1, round(attack.backdoor.share * rows.shape[-1]))))
                rows[shown] += self._learner.triggered
                label[shown] = attack.backdoor.target

    def _bad(self) -> int:
        return self._block.training.participants(self._block.byzantine)[1]

    def _counts(self, present: list[list[int]]) -> torch.Tensor:
        """Examples claimed, (A G, K)."""
        sizes = [[len(parts[client]) for client in chosen] for parts, chosen in zip(self._parts, present, strict=True)]
        counts = self._each(self._on_device(np.array(sizes, dtype=np.float64)))
        for name, places in self._adversaries.items():
            if (claim := ADVERSARIES[name].claim) is not None:
                bad = counts[:, counts.shape[1] - self._bad() :]
                places.put(bad, torch.full_like(places.of(bad), claim))
        return counts

    def _order(self, clients: int) -> torch.Tensor:
        """A shuffle of the updates of each cell, (A G, K)."""
        drawn = [
            self._draws.generator("order", source.seed, self._turn).permutation(clients)
            for source in self._block.sources
        ]
        return self._each(self._on_device(np.array(drawn)))

    def _attack(self, updates: torch.Tensor, known: Known) -> None:
        """Puts what the byzantine clients send in the place of what they trained; updates (A G, K, P), in place."""
        honest = updates.shape[1] - self._bad()
        for name, places in self._adversaries.items():
            attack = ADVERSARIES[name]
            if attack.craft is not trained:
                scene = self._scene(attack, name, places.of(updates), honest, places, known)
                places.put(updates[:, honest:], attack.craft(scene))

    def _scene(
        self,
        attack: Adversary,
        name: str,
        updates: torch.Tensor,
        honest: int,
        places: Places,
        known: Known,
    ) -> Scene:
        noise = self._each(self._noise(updates.shape[-1]), places) if attack.noise else None
        loyal = updates[:, :honest]

        def respond(sent: torch.Tensor) -> torch.Tensor:
            found, each = sent.new_empty(*sent.shape[:2], sent.shape[-1]), known.at(places.of).for_each()
            for (rule, told), mine in self._searched[name].items():
                others = mine.of(loyal).unsqueeze(1).expand(-1, sent.shape[1], -1, -1)
                mine.put(found, rule(torch.cat([others, mine.of(sent)], 2), told, each.at(mine.of)))
            return found

        own = updates[:, honest:] if attack.own else None
        previous = None if known.previous is None else places.of(known.previous)
        return Scene(loyal, self._bad(), own, previous, noise, respond if attack.search else None)

    def _private(self, mean: torch.Tensor, privacy: Privacy, clients: int) -> torch.Tensor:
        """The mean (A G, P) of so many updates as one over all clients asked, with noise; each seed has its own."""
        asked = sum(self._block.training.asked(self._block.byzantine))
        drawn = [
            self._draws.generator("privacy", source.seed, self._turn).standard_normal(mean.shape[1])
            for source in self._block.sources
        ]
        # Noise that clients add is missing where they do not answer, and where they are byzantine.
        present = math.sqrt((clients - self._bad()) / asked) if privacy.by_clients else 1.0
        noise = privacy.noise_multiplier * privacy.clip / asked * present * np.array(drawn)
        return mean * (clients / asked) + self._each(self._on_device(noise).to(mean.dtype))

    def _noise(self, width: int) -> torch.Tensor:
        """(G, f, P), standard normal."""
        drawn = [
            self._draws.generator("noise", source.seed, self._turn).standard_normal((self._bad(), width))
            for source in self._block.sources
        ]
        return self._on_device(np.array(drawn))

    def _places(self, keys: Sequence[Key], nested: bool = False) -> dict[Key, Places]:
        found: dict[Key, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(key, []).append(place)
        return {key: Places.found(places, self._learner.device, nested) for key, places in found.items()}


def _aggregate(rules: dict[tuple[Rule, int], Places], updates: torch.Tensor, known: Known) -> torch.Tensor:
    """What each cell's own rule makes of its updates (cells, ..., K, P): (cells, ..., P)."""
    found = updates.new_empty(*updates.shape[:-2], updates.shape[-1])
    for (rule, told), places in rules.items():
        places.put(found, rule(places.of(updates), told, known.at(places.of)))
    return found
