"""Which cells are trained in one batch: cells of equal shape, as many as memory allows."""

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
    """G sources with A cells each; all share one training and one number of byzantine clients.

    cells  G tuples, each of A indices into the list of all cells
    """

    training: Training
    byzantine: int
    sources: tuple[Source, ...]
    cells: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> list[int]:
        """Indices of all cells (A G,); sources vary fastest. Cells of one adversary are adjacent, sorted by rule."""
        return [place for places in zip(*self.cells, strict=True) for place in places]


def blocks(cells: Sequence[Cell], most: int) -> list[Block]:
    """Every cell in exactly one block of at most `most` cells; largest blocks first."""
    shapes: dict[tuple[Training, int], dict[Source, list[int]]] = {}
    # Sorted by adversary and rule, the cells of each stand at regular distances: Places can view them without a copy.
    for place, cell in sorted(
        enumerate(cells), key=lambda item: repr((item[1].adversary, item[1].rule, item[1].assumed))
    ):
        source = Source(cell.partition, cell.seed, cell.poison)
        shapes.setdefault((cell.training, cell.byzantine), {}).setdefault(source, []).append(place)
    packed = []
    for (training, byzantine), sources in shapes.items():
        # A block is rectangular, G x A: only sources with equally many cells can share one.
        by_length: dict[int, list[tuple[Source, tuple[int, ...]]]] = {}
        for source, places in sources.items():
            for piece in _even(places, most):
                by_length.setdefault(len(piece), []).append((source, piece))
        for length, pieces in by_length.items():
            for chosen in _even(pieces, max(1, most // length)):
                packed.append(Block(training, byzantine, tuple(s for s, _ in chosen), tuple(p for _, p in chosen)))
    return sorted(packed, key=lambda block: -len(block.cells) * len(block.cells[0]))


def _even(items: Sequence[Item], most: int) -> list[tuple[Item, ...]]:
    """`items` split into the fewest runs of at most `most` items; run lengths differ by at most one."""
    count = -(-len(items) // most)
    edges = [number * len(items) // count for number in range(count + 1)]
    return [tuple(items[first:last]) for first, last in pairwise(edges)]
