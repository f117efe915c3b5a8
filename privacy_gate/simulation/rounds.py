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
    """A block of cells in training: its models (A G, P), the state of their servers, and the number of the round."""

    def __init__(
        self, learner: Learner, cells: Sequence[Cell], block: Block, parts: Sequence[Sequence[Rows]], draws: Draws
    ) -> None:
        self._learner, self._block, self._parts, self._draws = learner, block, parts, draws
        self._cells = [cells[place] for place in block.order]
        self._turn = 0
        self.models = learner.start([cell.seed for cell in self._cells])
        self._previous: torch.Tensor | None = None
        # The models of one round ago, from which late clients train.
        self._before = self.models.clone() if block.training.stale else self.models
        self._rules = self._places([(cell.joined, cell.assumed) for cell in self._cells], nested=True)
        self._adversaries = self._places([cell.adversary for cell in self._cells if cell.adversary])
        # A line search asks each cell's rule for its answer, so an adversary's cells are grouped by rule as well.
        self._searched = {
            name: self._places([(cell.joined, cell.assumed) for cell in self._cells if cell.adversary == name])
            for name in self._adversaries
        }
        # Sources vary fastest among the cells of a block: see Block.order.
        self._source = torch.arange(len(self._cells), device=learner.device) % len(block.sources)
        self._servers = self._places([cell.server for cell in self._cells])
        self._states = {server: server.start(places.of(self.models)) for server, places in self._servers.items()}
        named = {step.name for rule, _ in self._rules for step in (*rule.before, rule.aggregator)}
        self._rooted, self._losses, self._shuffled = (name in named for name in ("fltrust", "q_fedavg", "bucketing"))
        # Byzantine clients whose updates depend only on those of others need not train.
        self._idle = not self._losses and not any(ADVERSARIES[name].own for name in self._adversaries)
        if self._rooted and not len(learner.root):
            raise ConfigurationError(
                "fltrust needs the server's own rows: give the study root samples, or choose another rule"
            )

    def advance(self) -> None:
        """Runs one round of every cell."""
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
        # Honest clients clip before the attack, so that adversaries see what is sent; a rule may clip again after it.
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
        """Updates (A G, K, P), and the losses (A G, K) if a rule needs them; late clients come first."""
        training = self._block.training
        late = training.late(self._block.byzantine, self._turn)
        trained_parts = []
        for models, clients in ((self._before, slice(0, late)), (self.models, slice(late, None))):
            if clients.stop == 0:
                continue
            start = models.view(-1, len(self._block.sources), models.shape[1])
            trained_parts.append(self._learner.updates(start, batches.at(slice(None), clients), training, self._losses))
        # Without late clients the only part is used as it is: torch.cat would copy it.
        updates = torch.cat([update for update, _ in trained_parts], 2) if late else trained_parts[0][0]
        losses = torch.cat([loss for _, loss in trained_parts if loss is not None], 2) if self._losses else None
        return updates.flatten(0, 1), None if losses is None else losses.flatten(0, 1)

    def _by_cell(self, values: torch.Tensor, places: Places | None = None) -> torch.Tensor:
        """Values (G, ...) of the sources, repeated for every cell, or for the cells at `places`: (A G, ...)."""
        return values[self._source if places is None else places.of(self._source)]

    def _on_device(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._learner.device)

    def _batches(self, present: list[list[int]]) -> Batches:
        """The batches of all participants, (G, K, S, B); if the server trains too, it is the last client."""
        training, root = self._block.training, [self._block.training.clients] * self._rooted
        held = [[*parts, self._learner.root] for parts in self._parts]
        steps = max(
            steps_of(training, len(rows[client]))
            for rows, chosen in zip(held, present, strict=True)
            for client in chosen + root
        )
        # All clients are padded to the largest number of steps; padding has weight 0.
        shape = (len(present), len(present[0]) + self._rooted, steps, training.batch)
        idle = range(len(present[0]) - self._bad(), len(present[0])) if self._idle else range(0)
        rows, weight = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        for group, (source, chosen) in enumerate(zip(self._block.sources, present, strict=True)):
            for place, client in enumerate(chosen + root):
                if place in idle:
                    continue
                client_rows = held[group][client]
                drawn, share = self._draws.batches(training, len(client_rows), source.seed, client, self._turn)
                rows[group, place, : len(drawn)], weight[group, place, : len(drawn)] = client_rows[drawn], share
        label = self._learner.label[rows]
        self._poison(rows, label, len(present[0]))
        return Batches(self._on_device(rows), self._on_device(label), self._on_device(weight).to(self._learner.dtype))

    def _poison(self, rows: Rows, label: NDArray[np.int64], clients: int) -> None:
        """Poisons rows and labels (G, K, S, B) of the byzantine clients, in place; they are the last of `clients`."""
        bad = self._bad()
        for group, source in enumerate(self._block.sources):
            attack = ADVERSARIES[source.poison] if source.poison else None
            byzantine = (group, slice(clients - bad, clients))
            if attack and attack.labels:
                label[byzantine] = attack.labels(self._learner.classes)[label[byzantine]]
            if attack and attack.backdoor:
                if self._learner.triggered is None:
                    raise ConfigurationError(
                        "a backdoor needs features of triggered images, but the samples have none: give `triggered`"
                    )
                # Batches are shuffled, so the first rows of each are a random share. A row's triggered twin stands
                # `triggered` rows further on in the table.
                poisoned = (*byzantine, slice(None), slice(0, max(1, round(attack.backdoor.share * rows.shape[-1]))))
                rows[poisoned] += self._learner.triggered
                label[poisoned] = attack.backdoor.target

    def _bad(self) -> int:
        """Number of byzantine clients in a round."""
        return self._block.training.participants(self._block.byzantine)[1]

    def _counts(self, present: list[list[int]]) -> torch.Tensor:
        """Number of examples that each client claims, (A G, K)."""
        sizes = [[len(parts[client]) for client in chosen] for parts, chosen in zip(self._parts, present, strict=True)]
        counts = self._by_cell(self._on_device(np.array(sizes, dtype=np.float64)))
        for name, places in self._adversaries.items():
            if (claim := ADVERSARIES[name].claim) is not None:
                bad = counts[:, counts.shape[1] - self._bad() :]
                places.put(bad, torch.full_like(places.of(bad), claim))
        return counts

    def _order(self, clients: int) -> torch.Tensor:
        """A random permutation of the clients for each cell, (A G, K)."""
        drawn = [
            self._draws.generator("order", source.seed, self._turn).permutation(clients)
            for source in self._block.sources
        ]
        return self._by_cell(self._on_device(np.array(drawn)))

    def _attack(self, updates: torch.Tensor, known: Known) -> None:
        """Replaces the byzantine clients' trained updates by those that they send; updates (A G, K, P), in place."""
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
        """What the colluding clients know in the cells at `places`, all attacked by adversary `name`."""
        noise = self._by_cell(self._noise(updates.shape[-1]), places) if attack.noise else None
        loyal = updates[:, :honest]

        def respond(sent: torch.Tensor) -> torch.Tensor:
            """Aggregates (cells, Z, P) after Z alternative attacks (cells, Z, f, P), by each cell's own rule."""
            aggregates, known_here = sent.new_empty(*sent.shape[:2], sent.shape[-1]), known.at(places.of).broadcast()
            for (rule, tolerated), subset in self._searched[name].items():
                others = subset.of(loyal).unsqueeze(1).expand(-1, sent.shape[1], -1, -1)
                received = torch.cat([others, subset.of(sent)], 2)
                subset.put(aggregates, rule(received, tolerated, known_here.at(subset.of)))
            return aggregates

        own = updates[:, honest:] if attack.own else None
        previous = None if known.previous is None else places.of(known.previous)
        return Scene(loyal, self._bad(), own, previous, noise, respond if attack.search else None)

    def _private(self, mean: torch.Tensor, privacy: Privacy, clients: int) -> torch.Tensor:
        """Rescales the mean (A G, P) of `clients` to one over all clients asked; adds noise, one draw per source."""
        asked = sum(self._block.training.asked(self._block.byzantine))
        drawn = [
            self._draws.generator("privacy", source.seed, self._turn).standard_normal(mean.shape[1])
            for source in self._block.sources
        ]
        # Clients that do not answer, and byzantine ones, add no noise: the variance falls in proportion.
        present = math.sqrt((clients - self._bad()) / asked) if privacy.by_clients else 1.0
        noise = privacy.noise_multiplier * privacy.clip / asked * present * np.array(drawn)
        return mean * (clients / asked) + self._by_cell(self._on_device(noise).to(mean.dtype))

    def _noise(self, width: int) -> torch.Tensor:
        """Noise for byzantine clients, (G, f, P), standard normal."""
        drawn = [
            self._draws.generator("noise", source.seed, self._turn).standard_normal((self._bad(), width))
            for source in self._block.sources
        ]
        return self._on_device(np.array(drawn))

    def _places(self, keys: Sequence[Key], nested: bool = False) -> dict[Key, Places]:
        """The places of each distinct key in the list of keys."""
        by_key: dict[Key, list[int]] = {}
        for place, key in enumerate(keys):
            by_key.setdefault(key, []).append(place)
        return {key: Places.from_numbers(places, self._learner.device, nested) for key, places in by_key.items()}


def _aggregate(rules: dict[tuple[Rule, int], Places], updates: torch.Tensor, known: Known) -> torch.Tensor:
    """Updates (cells, ..., K, P) aggregated by each cell's own rule: (cells, ..., P)."""
    aggregates = updates.new_empty(*updates.shape[:-2], updates.shape[-1])
    for (rule, tolerated), places in rules.items():
        places.put(aggregates, rule(places.of(updates), tolerated, known.at(places.of)))
    return aggregates
