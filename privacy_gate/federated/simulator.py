"""Federated training of softmax heads on cached features: every cell of a study in few stacked batches."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.errors import ConfigurationError
from privacy_gate.evidence import Floats
from privacy_gate.federated.adversaries import ADVERSARIES
from privacy_gate.federated.blocks import Block, blocks
from privacy_gate.federated.cells import Cell, Draws
from privacy_gate.federated.heads import Heads
from privacy_gate.federated.learner import Learner
from privacy_gate.federated.partitions import COLUMN, Partition, Rows, class_shares, heterogeneity
from privacy_gate.federated.rounds import Federation
from privacy_gate.federated.samples import Samples, with_ones
from privacy_gate.federated.scores import exam

CPU_BYTES = 16 << 20
"""What the updates of one block may take on a CPU: larger blocks leave its caches."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one cell; accuracies on the test samples, means over the last tenth of the rounds.

    accuracy         of all rows
    curve            (R',)  at each round in `rounds` (R',), counted from 1
    class_accuracy   (C,)   NaN for a class without rows
    client_accuracy  (K,)   of each client's own test rows where they name their clients, else with its classes' shares;
                     NaN for one whose classes nobody is tested on
    backdoor         share of triggered rows of other classes that the last head calls the target; None without one
    heterogeneity    mean total variation distance of the clients' classes from everyone's
    sizes            (K,)   training rows of each client
    model            (P,)   as the last round left it
    """

    accuracy: float
    curve: Floats
    rounds: NDArray[np.int64]
    class_accuracy: Floats
    client_accuracy: Floats
    backdoor: float | None
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
    names = [] if study.train.client is None else list(np.unique(study.train.client))
    learner = learner or _heads(study, names)
    largest = max((cell.training.clients for cell in cells), default=1) + 1
    each = largest * learner.width * learner.dtype.itemsize
    work = blocks(cells, max(1, min(study.memory // each, -(-len(cells) // study.threads))))
    held = {key: _hold(study, learner.classes, draws, key) for key in set(map(_key, cells))}
    run = partial(_run, study, learner, cells, held, draws, every)
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


def _heads(study: Study, names: Sequence[object]) -> Heads:
    """Heads on the study's features; names of the clients whose own test rows count."""
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
        exam(study.test, study.classes, names, torch.device(study.device), study.dtype),
        study.test,
    )


def _run(
    study: Study,
    learner: Learner,
    cells: Sequence[Cell],
    everyone: dict[_Key, _Held],
    draws: Draws,
    every: int,
    block: Block,
) -> dict[int, Outcome]:
    """The outcomes of one block, by place."""
    held = [everyone[_key(cells[places[0]])] for places in block.cells]
    training, rounds, found = block.training, [], []
    with torch.inference_mode():
        federation = Federation(learner, cells, block, [each.rows for each in held], draws)
        for turn in range(1, training.rounds + 1):
            federation.advance()
            if turn > training.rounds - training.last or (every and turn % every == 0):
                rounds.append(turn)
                found.append(learner.rates(federation.models).cpu().numpy())
        backdoor = [_backdoor(learner, source.poison, federation.models) for source in block.sources]
    models = federation.models.cpu().numpy()
    outcomes = {}
    for index, place in enumerate(block.order):
        source = index % len(block.sources)
        rates, success = np.array([rate[index] for rate in found]), backdoor[source]
        outcomes[place] = _outcome(
            study,
            learner.classes,
            cells[place],
            held[source],
            np.array(rounds),
            rates,
            None if success is None else success[index],
            models[index],
        )
    return outcomes


def _backdoor(learner: Learner, poison: str | None, models: torch.Tensor) -> Floats | None:
    """How often each model calls triggered rows the target, (cells,)."""
    planted = ADVERSARIES[poison].backdoor if poison else None
    if planted is None:
        return None
    found = learner.backdoor(models, planted.target)
    return None if found is None else found.cpu().numpy()


def _outcome(
    study: Study,
    classes: int,
    cell: Cell,
    held: _Held,
    rounds: NDArray[np.int64],
    rates: Floats,
    backdoor: float | None,
    model: Floats,
) -> Outcome:
    """rates (R', C + K): accuracy by class, then by client where the test samples name them."""
    counts = np.bincount(study.test.label, minlength=classes)
    seen = counts > 0
    curve = rates[:, :classes][:, seen] @ (counts[seen] / counts.sum())
    mean = rates[-cell.training.last :].mean(axis=0)
    if cell.partition.name == COLUMN and study.test.client is not None:
        by_client = mean[classes:]
    else:
        shares = held.shares[:, seen]
        known = shares.sum(axis=1)  # 0 for a client whose classes nobody is tested on
        by_client = np.divide(shares @ mean[:classes][seen], known, out=np.full(len(known), np.nan), where=known > 0)
    return Outcome(
        accuracy=float(curve[-cell.training.last :].mean()),
        curve=curve,
        rounds=rounds,
        class_accuracy=mean[:classes],
        client_accuracy=by_client,
        backdoor=None if backdoor is None else float(backdoor),
        heterogeneity=held.heterogeneity,
        sizes=np.array([len(rows) for rows in held.rows]),
        model=model,
    )
