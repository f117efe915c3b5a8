"""Federated training of all cells of a study in a few stacked blocks; by default, cells train softmax heads."""

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
"""Memory for the updates of one block on a CPU, in bytes: larger blocks fall out of its caches."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one cell; accuracies are on the test samples, means over the last tenth of the rounds.

    accuracy         over all rows
    hit              (T,)   for each row, float32: share of rounds in which it is classified correctly
    curve            (R',)  accuracy at each round in `rounds` (R',), counted from 1
    class_accuracy   (C,)   for each class; NaN for a class without test rows
    client_accuracy  (K,)   for each client: on its own test rows if they name their clients, else the class accuracies
                     weighted by its class shares; NaN for a client without any tested class
    backdoor         (T',)  which triggered rows of other classes the final model assigns to the target, float32; None
                     without a backdoor
    heterogeneity    mean total variation distance of a client's class frequencies from those of all rows
    sizes            (K,)   number of training rows of each client
    model            (P,)   after the last round
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
        """The model as a softmax head, (C, D + 1), bias last; only valid if the learner trains heads."""
        return self.model.reshape(len(self.class_accuracy), -1)


@dataclass(frozen=True, eq=False)
class Study:
    """The data that cells train and are tested on, and the hardware they run on.

    check    name of the check, part of the key of every random draw
    root     the server's own samples, for rules that need them
    only     maps a cell's seed to the rows of `train` that it uses, as if there were no others; None: all rows
    device, dtype, threads, memory: affect speed, not results; memory: bytes for the updates of one block
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
            raise ConfigurationError(
                f"train, test and root samples have {sorted(widths)} features: all must have equally many"
            )

    @property
    def classes(self) -> int:
        """C: one more than the largest label in any of the samples."""
        return 1 + max(int(part.label.max()) for part in (self.train, self.test, self.root) if part is not None)


def simulate(study: Study, cells: Sequence[Cell], every: int = 0, learner: Learner | None = None) -> list[Outcome]:
    """Trains every cell; outcomes in the order of the cells.

    every: also measure accuracy every `every` rounds (0: do not); the last tenth is always measured. learner: the model
    that clients train on the study's rows; None: softmax heads on their features. A cell's outcome does not depend on
    other cells, threads, memory or device, except for rounding.
    """
    draws = Draws(study.check)
    learner = learner or _heads(study)
    # Updates per cell: one for each client, and one for a server that trains too.
    largest = max((cell.training.clients for cell in cells), default=1) + 1
    per_cell = largest * learner.width * learner.dtype.itemsize
    work = blocks(cells, max(1, study.memory // per_cell))
    held = {key: _hold(study, learner.classes, draws, key) for key in set(map(_key, cells))}
    run = partial(_run, study, learner, cells, held, draws, every, _averages(study, learner.classes))
    outcomes: dict[int, Outcome] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # blocks run in parallel, so torch's own threads would only compete for the cores
    try:
        with ThreadPoolExecutor(study.threads) as pool:
            for block_outcomes in pool.map(run, work):
                outcomes.update(block_outcomes)
    finally:
        torch.set_num_threads(before)
    return [outcomes[place] for place in range(len(cells))]


@dataclass(frozen=True, eq=False)
class _Held:
    """A partition of the training rows: rows and class shares (K, C) of each client, and the clients' heterogeneity."""

    rows: list[Rows]
    shares: Floats
    heterogeneity: float


_Key = tuple[Partition, int, int]


def _key(cell: Cell) -> _Key:
    """Cells with equal keys partition the rows alike."""
    return cell.partition, cell.training.clients, cell.seed


def _hold(study: Study, classes: int, draws: Draws, key: _Key) -> _Held:
    partition, clients, seed = key
    train = study.train
    usable = np.arange(len(train.label)) if study.only is None else study.only[seed]
    label, client = train.label[usable], None if train.client is None else train.client[usable]
    parts = partition.rows(label, clients, draws.generator("partition", seed), client)
    return _Held([usable[part] for part in parts], class_shares(parts, label, classes), heterogeneity(parts, label))


def _averages(study: Study, classes: int) -> Floats:
    """Which test rows belong, 1 or 0, to each class and to each training client: (C + K, T).

    Without client names in both the training and the test samples: (C, T).
    """
    train, test = study.train, study.test
    groups = [test.label == name for name in range(classes)]
    if train.client is not None and test.client is not None:
        groups += [test.client == name for name in np.unique(train.client)]
    return np.array(groups, dtype=np.float64)


def _heads(study: Study) -> Heads:
    """Softmax heads on the study's features."""
    train, root = study.train, study.root
    # The table holds the clients' rows, then their triggered twins in the same order, then the server's rows.
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
    """The outcomes of one block, keyed by the cell's index in the study."""
    held = [everyone[_key(cells[places[0]])] for places in block.cells]
    with torch.inference_mode():
        federation = BlockTraining(learner, cells, block, [partition.rows for partition in held], draws)
        result = _train(federation, learner, block, every)
    rows = averages.sum(axis=1, keepdims=True)
    # Accuracy by class and by client (C + K, cells); NaN for groups without test rows.
    shares = np.divide(averages @ result.hit, rows, out=np.full((len(rows), len(block.order)), np.nan), where=rows > 0)
    outcomes = {}
    for index, place in enumerate(block.order):
        # Sources vary fastest among the cells of a block: see Block.order.
        place_in_source, source = divmod(index, len(block.sources))
        holdings, planted, mean = held[source], result.backdoor[source], shares[:, index]
        outcomes[place] = Outcome(
            accuracy=float(result.curve[-block.training.last :, index].mean()),
            hit=result.hit[:, index].astype(np.float32),
            curve=result.curve[:, index],
            rounds=result.rounds,
            class_accuracy=mean[: learner.classes],
            client_accuracy=_by_client(study, learner.classes, cells[place].partition, holdings, mean),
            backdoor=None if planted is None else planted[:, place_in_source].astype(np.float32),
            heterogeneity=holdings.heterogeneity,
            sizes=np.array([len(rows) for rows in holdings.rows]),
            model=result.models[index],
        )
    return outcomes


@dataclass(frozen=True, eq=False)
class _Trained:
    """The results of a block, as in Outcome, with cells on the last axis.

    curve (R', cells), rounds (R',), hit (T, cells), models (cells, P); backdoor for each source: (T', A), or None
    """

    rounds: NDArray[np.int64]
    curve: Floats
    hit: Floats
    backdoor: list[Floats | None]
    models: Floats


def _train(federation: BlockTraining, learner: Learner, block: Block, every: int) -> _Trained:
    """Runs all rounds. Hits of the last rounds are summed as they come, so memory does not grow with the rounds."""
    training, rounds, curve = block.training, [], []
    total = torch.zeros((), dtype=torch.float64, device=learner.device)
    for turn in range(1, training.rounds + 1):
        federation.advance()
        last = turn > training.rounds - training.last
        if last or (every and turn % every == 0):
            hits = learner.hits(federation.models)
            rounds.append(turn)
            curve.append(hits.mean(0).cpu().numpy())
            # In place: hits of all test rows and cells can be large.
            total = hits.add_(total) if last else total
    backdoor = [
        _backdoor(learner, source.poison, federation.models[place :: len(block.sources)])
        for place, source in enumerate(block.sources)
    ]
    models, hit = federation.models.cpu().numpy(), total.cpu().numpy() / training.last
    return _Trained(np.array(rounds), np.array(curve), hit, backdoor, models)


def _backdoor(learner: Learner, poison: str | None, models: torch.Tensor) -> Floats | None:
    """Which triggered rows each model assigns to the backdoor's target, (T', cells); None without a backdoor."""
    planted = ADVERSARIES[poison].backdoor if poison else None
    if planted is None:
        return None
    hits = learner.backdoor(models, planted.target)
    return None if hits is None else hits.cpu().numpy()


def _by_client(study: Study, classes: int, partition: Partition, held: _Held, mean: Floats) -> Floats:
    """Accuracy of each client (K,). mean: accuracy by class (C,), then by client if test rows name them (C + K,).

    Without names, a client's accuracy is the mean of the class accuracies, weighted by its class shares.
    """
    if partition.name == COLUMN and study.test.client is not None:
        return mean[classes:]
    tested = np.isfinite(mean[:classes])
    shares = held.shares[:, tested]
    known = shares.sum(axis=1)  # 0 for a client without any tested class
    right = shares @ mean[:classes][tested]
    return np.asarray(np.divide(right, known, out=np.full(len(known), np.nan), where=known > 0))
