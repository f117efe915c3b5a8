"""The rounds of one block of federations: local training, attack, aggregation, server step. Axis letters: local.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.errors import ConfigurationError
from privacy_gate.federated.adversaries import ADVERSARIES, Scene
from privacy_gate.federated.blocks import Block, Source
from privacy_gate.federated.cells import Cell, Draws
from privacy_gate.federated.known import Known
from privacy_gate.federated.local import Batches, local_updates
from privacy_gate.federated.partitions import Rows
from privacy_gate.federated.servers import ServerState


@dataclass(frozen=True, eq=False)
class Table:
    """All rows that may be trained on: the clients', their triggered twins, the server's own.

    features  (N', E) with a column of ones, on the device; label (N',)
    triggered  how far behind a row its triggered twin is; None without
    root      the server's own rows; empty without
    """

    features: torch.Tensor
    label: NDArray[np.int64]
    classes: int
    triggered: int | None
    root: Rows


class Federation:
    """A block of cells in training: their heads, what their servers remember, and the next round.

    heads  (G A, C E), from zero
    """

    def __init__(
        self, table: Table, cells: Sequence[Cell], block: Block, parts: Sequence[Sequence[Rows]], draws: Draws
    ) -> None:
        self._table, self._block, self._parts, self._draws = table, block, parts, draws
        self._cells = [cells[place] for places in block.cells for place in places]
        count, width = len(self._cells), table.classes * table.features.shape[1]
        self.heads = table.features.new_zeros(count, width)
        self._previous: torch.Tensor | None = None
        self._turn = 0
        self._rules = self._places([(cell.rule, cell.told) for cell in self._cells])
        self._adversaries = self._places([cell.adversary for cell in self._cells])
        self._servers = self._places([cell.server for cell in self._cells])
        self._states: dict[object, ServerState] = {
            server: server.start(self.heads[places]) for server, places in self._servers.items()
        }
        named = {step.name for rule, _ in self._rules for step in (*rule.before, rule.aggregator)}
        self._rooted, self._losses = "fltrust" in named, "q_fedavg" in named
        self._ordered = "bucketing" in named
        if self._rooted and not len(table.root):
            raise ConfigurationError("fltrust needs rows of the server's own: give root samples, or choose another rule")

    def _places[Key](self, keys: Sequence[Key]) -> dict[Key, torch.Tensor]:
        """Where each key stands among the block's cells."""
        found: dict[Key, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(key, []).append(place)
        return {key: torch.tensor(places, device=self._table.features.device) for key, places in found.items()}

    def advance(self) -> None:
        """One round of every cell."""
        block, training = self._block, self._block.training
        groups, each = len(block.sources), len(block.cells[0])
        present = [
            self._draws.participants(training, block.byzantine, source.seed, self._turn) for source in block.sources
        ]
        heads = self.heads.view(groups, each, self._table.classes, -1)
        updates, losses = local_updates(
            self._table.features, heads, self._batches(present), training, self._losses
        )
        updates = updates.flatten(0, 1)
        root = updates[:, -1] if self._rooted else None
        updates = updates[:, : len(present[0])]
        if losses is not None:
            losses = losses.permute(0, 2, 1) if losses.shape[1] != each else losses
            losses = losses.flatten(0, 1)[:, : len(present[0])]
        known = Known(
            counts=self._counts(present),
            previous=self._previous,
            root=root,
            losses=losses,
            order=self._order(len(present[0])) if self._ordered else None,
            lr=training.lr,
        )
        self._attack(updates, known, training.participants(block.byzantine)[1] if block.byzantine else 0)
        aggregate = self._aggregate(updates, known, None)
        self._previous = aggregate
        for server, places in self._servers.items():
            step, self._states[server] = server.step(aggregate[places], self._states[server])
            self.heads[places] += step
        self._turn += 1
