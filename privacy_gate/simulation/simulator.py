"""Federated training of softmax heads on cached features: every cell of a study in few stacked batches."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.arrays import Floats
from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.adversaries import ADVERSARIES
from privacy_gate.simulation.blocks import Block, blocks
from privacy_gate.simulation.cells import Cell, Draws
from privacy_gate.simulation.heads import Heads
from privacy_gate.simulation.learner import Learner
from privacy_gate.simulation.partitions import COLUMN, Partition, Rows, class_shares, heterogeneity
from privacy_gate.simulation.rounds import BlockTraining
from privacy_gate.simulation.samples import Samples, with_ones
from privacy_gate.simulation.scores import exam

CPU_BYTES = 16 << 20
"""What the updates of one block may take on a CPU: larger blocks leave its caches."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one cell; accuracies on the test samples, means over the last tenth of the rounds.

    accuracy         of all rows
    hit              (T,)   of each row, float32: its share of being right
    curve            (R',)  at each round in `rounds` (R',), counted from 1
    class_accuracy   (C,)   NaN for a class without rows
    client_accuracy  (K,)   of each client's own test rows where they name their clients, else with its classes' shares;
                     NaN for one whose classes nobody is tested on
    backdoor         (T',)  which triggered rows of other classes the last model calls the target, float32; None
                     without a backdoor
    heterogeneity    mean total variation distance of the clients' classes from everyone's
    sizes            (K,)   training rows of each client
    model            (P,)   as the last round left it
    """

    accuracy: float
    hit: NDArray[np.float32]
    curve: Floats
    rounds: NDArray[np.int64]
    class_accuracy: Floats
    client_accuracy: Floats
    backdoor: NDArray[np.float32] | None
    heterogeneity: float
    sizes: NDArray[np.int64]
    model: Floats

    @property
    def head(self) -> Floats:
        """The model where it is a head: (C, D + 1), bias last."""
        return self.model.reshape(len(self.class_accuracy), -1)


@dataclass(frozen=True, eq=False)
class Study:
    """Data that cells are trained on and judged by, and where.

    check    name of the check, part of the key of every random draw
    root     the server's own samples, for rules that need them
    only     by a cell's seed, the rows of `train` that it is trained on, as if there were no others; None: all of them
    device, dtype, threads, memory: how fast, not what; memory in bytes of updates in one block
    """

    train: Samples
    test: Samples
    check: str
    root: Samples | None = None
    only: Mapping[int, Rows] | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    memory: int = CPU_BYTES

    def __post_init__(self) -> None:
        widths = {part.features.shape[1] for part in (self.train, self.test, self.root) if part is not None}
        if len(widths) != 1:
            raise ConfigurationError(f"samples have {sorted(widths)} features, expected as many in all")

    @property
    def classes(self) -> int:
        """C: one more than the largest label anywhere."""
        return 1 + max(int(part.label.max()) for part in (self.train, self.test, self.root) if part is not None)


def simulate(study: Study, cells: Sequence[Cell], every: int = 0, learner: Learner | None = None) -> list[Outcome]:
    """Trains every cell; outcomes in the order of the cells.

    every: also measure accuracy each so many rounds; the last tenth is always measured. learner: what clients train on
    the study's rows; None: heads on their features. A cell's outcome is its own, up
    to rounding: it depends on no other cell, nor on threads, memory or device.
    """
    draws = Draws(study.check)
    learner = learner or _heads(study)
    largest = max((cell.training.clients for cell in cells), default=1) + 1
    each = largest * learner.width * learner.dtype.itemsize
    work = blocks(cells, max(1, study.memory // each))
    held = {key: _hold(study, learner.classes, draws, key) for key in set(map(_key, cells))}
    run = partial(_run, study, learner, cells, held, draws, every, _averages(study, learner.classes))
    outcomes: dict[int, Outcome] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # blocks run side by side: threads that meet at no barrier lose nothing
    try:
        with ThreadPoolExecutor(study.threads) as pool:
            for found in pool.map(run, work):
                outcomes.update(found)
    finally:
        torch.set_num_threads(before)
    return [outcomes[place] for place in range(len(cells))]


@dataclass(frozen=True, eq=False)
class _Held:
    """Who holds what: rows of each client, the shares of its classes (K, C), and how much they differ."""

    rows: list[Rows]
    shares: Floats
    heterogeneity: float


_Key = tuple[Partition, int, int]


def _key(cell: Cell) -> _Key:
    """What decides who holds what."""
    return cell.partition, cell.training.clients, cell.seed


def _hold(study: Study, classes: int, draws: Draws, key: _Key) -> _Held:
    partition, clients, seed = key
    train = study.train
    mine = np.arange(len(train.label)) if study.only is None else study.only[seed]
    label, client = train.label[mine], None if train.client is None else train.client[mine]
    parts = partition.rows(label, clients, draws.generator("partition", seed), client)
    return _Held([mine[part] for part in parts], class_shares(parts, label, classes), heterogeneity(parts, label))


def _averages(study: Study, classes: int) -> Floats:
    """Which test rows count, 1 or 0, for each class, and for each client of the training rows where both name theirs:
    (C + K, T)."""
    train, test = study.train, study.test
    found = [test.label == name for name in range(classes)]
    if train.client is not None and test.client is not None:
        found += [test.client == name for name in np.unique(train.client)]
    return np.array(found, dtype=np.float64)


def _heads(study: Study) -> Heads:
    """Heads on the study's features."""
    train, root = study.train, study.root
    pieces = [train.features] + [train.triggered] * (train.triggered is not None)
    labels = [train.label] * len(pieces)
    triggered = len(train.label) if train.triggered is not None else None
    first = sum(map(len, labels))
    if root is not None:
        pieces, labels = [*pieces, root.features], [*labels, root.label]
    features = torch.from_numpy(with_ones(np.concatenate([piece for piece in pieces if piece is not None])))
    label = np.concatenate(labels).astype(np.int64)
    return Heads(
        features.to(study.device, study.dtype),
        label,
        study.classes,
        triggered,
        np.arange(first, len(label)),
        exam(study.test, torch.device(study.device), study.dtype),
        study.test,
    )


def _run(
    study: Study,
    learner: Learner,
    cells: Sequence[Cell],
    everyone: dict[_Key, _Held],
    draws: Draws,
    every: int,
    averages: Floats,
    block: Block,
) -> dict[int, Outcome]:
    """The outcomes of one block, by place."""
    held = [everyone[_key(cells[places[0]])] for places in block.cells]
    with torch.inference_mode():
        federation = BlockTraining(learner, cells, block, [each.rows for each in held], draws)
        found = _train(federation, learner, block, every)
    rows = averages.sum(axis=1, keepdims=True)
    shares = np.divide(averages @ found.hit, rows, out=np.full((len(rows), len(block.order)), np.nan), where=rows > 0)
    outcomes = {}
    for index, place in enumerate(block.order):
        own, source = divmod(index, len(block.sources))
        mine, planted, mean = held[source], found.backdoor[source], shares[:, index]
        outcomes[place] = Outcome(
            accuracy=float(found.curve[-block.training.last :, index].mean()),
            hit=found.hit[:, index].astype(np.float32),
            curve=found.curve[:, index],
            rounds=found.rounds,
            class_accuracy=mean[: learner.classes],
            client_accuracy=_by_client(study, learner.classes, cells[place].partition, mine, mean),
            backdoor=None if planted is None else planted[:, own].astype(np.float32),
            heterogeneity=mine.heterogeneity,
            sizes=np.array([len(rows) for rows in mine.rows]),
            model=found.models[index],
        )
    return outcomes


@dataclass(frozen=True, eq=False)
class _Trained:
    """What became of a block: as in Outcome, cells last.

    curve (R', cells), rounds (R',), hit (T, cells), models (cells, P); backdoor by source: (T', A), or None
    """

    rounds: NDArray[np.int64]
    curve: Floats
    hit: Floats
    backdoor: list[Floats | None]
    models: Floats


def _train(federation: BlockTraining, learner: Learner, block: Block, every: int) -> _Trained:
    """All rounds. Of the hits of the last ones only the sum is kept, so memory does not grow with the rounds."""
    training, rounds, curve = block.training, [], []
    total = torch.zeros((), dtype=torch.float64, device=learner.device)
    for turn in range(1, training.rounds + 1):
        federation.advance()
        last = turn > training.rounds - training.last
        if last or (every and turn % every == 0):
            hits = learner.hits(federation.models)
            rounds.append(turn)
            curve.append(hits.mean(0).cpu().numpy())
            total = hits.add_(total) if last else total
    backdoor = [
        _backdoor(learner, source.poison, federation.models[place :: len(block.sources)])
        for place, source in enumerate(block.sources)
    ]
    models, hit = federation.models.cpu().numpy(), total.cpu().numpy() / training.last
    return _Trained(np.array(rounds), np.array(curve), hit, backdoor, models)


def _backdoor(learner: Learner, poison: str | None, models: torch.Tensor) -> Floats | None:
    """Which triggered rows each model calls the target, (T', cells)."""
    planted = ADVERSARIES[poison].backdoor if poison else None
    if planted is None:
        return None
    found = learner.backdoor(models, planted.target)
    return None if found is None else found.cpu().numpy()


def _by_client(study: Study, classes: int, partition: Partition, held: _Held, mean: Floats) -> Floats:
    """Accuracy of each client (K,), of those by class, then by client where the test samples name them (C + K,)."""
    if partition.name == COLUMN and study.test.client is not None:
        return mean[classes:]
    seen = np.isfinite(mean[:classes])
    shares = held.shares[:, seen]
    known = shares.sum(axis=1)  # 0 for a client whose classes nobody is tested on
    right = shares @ mean[:classes][seen]
    return np.asarray(np.divide(right, known, out=np.full(len(known), np.nan), where=known > 0))
