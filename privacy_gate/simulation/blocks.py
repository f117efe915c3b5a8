"""Which cells are trained in one batch: those of one shape, as many as memory allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from privacy_gate.simulation.cells import Cell, Training
from privacy_gate.simulation.partitions import Partition

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """Cells with the same source train on the same rows in the same order."""

    partition: Partition
    seed: int
    poison: str | None


@dataclass(frozen=True)
class Block:
    """G sources with A cells each, all of one training and with as many byzantine clients.

    cells  G tuples of A places in the list of all cells
    """

    training: Training
    byzantine: int
    sources: tuple[Source, ...]
    cells: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> list[int]:
        """All places (A G,), cell by cell: sources vary fastest; those of one adversary stand together, by rule."""
        return [place for places in zip(*self.cells, strict=True) for place in places]


def blocks(cells: Sequence[Cell], most: int) -> list[Block]:
    """All cells, each in one block of at most `most` cells; largest blocks first."""
    shapes: dict[tuple[Training, int], dict[Source, list[int]]] = {}
    for place, cell in sorted(enumerate(cells), key=lambda item: repr((item[1].adversary, item[1].rule, item[1].told))):
        source = Source(cell.partition, cell.seed, cell.poison)
        shapes.setdefault((cell.training, cell.byzantine), {}).setdefault(source, []).append(place)
    found = []
    for (training, byzantine), sources in shapes.items():
        alike: dict[int, list[tuple[Source, tuple[int, ...]]]] = {}
        for source, places in sources.items():
            for piece in _even(places, most):
                alike.setdefault(len(piece), []).append((source, piece))
        for length, pieces in alike.items():
            for chosen in _even(pieces, max(1, most // length)):
                found.append(Block(training, byzantine, tuple(s for s, _ in chosen), tuple(p for _, p in chosen)))
    return sorted(found, key=lambda block: -len(block.cells) * len(block.cells[0]))


def _even(items: Sequence[Item], most: int) -> list[tuple[Item, ...]]:
    """`items` in as few runs of at most `most` as possible, about equally long."""
    count = -(-len(items) // most)
    edges = [number * len(items) // count for number in range(count + 1)]
    return [tuple(items[first:last]) for first, last in pairwise(edges)]
