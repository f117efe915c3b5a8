"""What is random in a reference: the rows it is trained on, the order of its batches, its first head.

Every draw comes from a generator keyed by what it is for and by the reference's index, never by how
many references there are: references 64 to 127 can be added to the first 64 without changing them.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.errors import EvidenceError

Subset = tuple[int, NDArray[np.int64]]
"""A reference's index and the rows it is trained on."""

# One stream of random numbers each; part of what a stored reference means, so never to be changed.
_ROWS = int.from_bytes(b"rows")
_PART = int.from_bytes(b"part")
_ORDER = int.from_bytes(b"order")
_VIEW = int.from_bytes(b"view")
_INITIAL = int.from_bytes(b"initial")
_POISSON = int.from_bytes(b"poisson")
_NOISE = int.from_bytes(b"noise")
_UPDATE = int.from_bytes(b"update")
_NETWORK = int.from_bytes(b"network")


def group_size(pool: int, size: int) -> int:
    """How many references make a group in which every row of the pool is in once and out once.

    pool: audited rows (members + holdout); size: rows each reference is trained on. It is
    ceil(max(1/p, 1/(1-p))), p = size/pool. A number of references that is a multiple of it
    treats all rows most evenly. Raises EvidenceError unless 0 < size < pool.

    >>> group_size(1000, 500), group_size(1000, 900)
    (2, 10)
    """
    if not 0 < size < pool:
        raise EvidenceError(
            f"{size} of {pool} audited rows are members, expected at least 1 member and 1 holdout row: "
            "references are trained on as many rows as the candidate, and need others to be left out"
        )
    return max(-(-pool // size), -(-pool // (pool - size)))


def included(index: int, pool: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The rows reference `index` is trained on: (N,) bool, exactly `size` of them, all from `pool`.

    pool (N,) True for the audited rows. References come in groups of G = group_size. A group has one
    random permutation of the pool; its reference j takes `size` consecutive places of it, around
    the end if need be, from place floor(j * pool / G) on. Starts are never further apart than `size` nor
    than pool - size, so a whole group has every row in at least once and out at least once; with
    size = pool / 2 it is a pair of complements. Each reference alone is a uniformly random subset, and
    groups are independent.
    """
    rows = np.flatnonzero(pool)
    group = group_size(rows.size, size)
    number, place = divmod(index, group)
    permuted = np.random.default_rng([_ROWS, number]).permutation(rows)
    start = place * rows.size // group
    chosen = np.zeros(len(pool), dtype=np.bool_)
    chosen[np.take(permuted, np.arange(start, start + size), mode="wrap")] = True
    return chosen


def subpool(label: NDArray[np.int64], pool: NDArray[np.bool_], divisor: int) -> NDArray[np.bool_]:
    """One `divisor`-th of every class of the pool: (N,) bool; a larger divisor's rows are among a smaller's.

    label (N,), pool (N,) True for the audited rows. Divisor 1 is the pool itself; a class keeps at
    least two rows, so that one can be in and one out.
    """
    chosen = np.zeros(len(pool), dtype=np.bool_)
    for name in np.unique(label[pool]):
        rows = np.flatnonzero(pool & (label == name))
        order = np.random.default_rng([_PART, int(name)]).permutation(rows)
        chosen[order[: max(2, len(rows) // divisor)]] = True
    return chosen


def training_sets(
    data: AuditData, indices: Iterable[int], divisor: int = 1, without: Sequence[int] = ()
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each reference's index and the rows of the table that it is trained on, (N,) bool.

    As large a share of the pool as the members are of the whole of it; divisor, without: as of job.TrainReference.
    """
    pool = data.split != Split.POPULATION
    share = int((data.split == Split.MEMBER).sum()) / int(pool.sum())
    left = pool.copy()
    left[list(without)] = False
    part = subpool(data.label, left, divisor)
    size = round(int(part.sum()) * share)
    for index in indices:
        yield index, included(index, part, size)


def batch_order(index: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order in which reference `index` sees its `size` examples in `epoch` (from 0).

    (size,) int64, a permutation of range(size); consecutive runs of the batch size are the batches,
    the last one shorter, as DataLoader(shuffle=True, drop_last=False) makes them.
    """
    return np.random.default_rng([_ORDER, index, epoch]).permutation(size)


def shown(index: int, epoch: int, rows: NDArray[np.int64], views: int, table: int) -> NDArray[np.int64]:
    """What reference `index` sees in `epoch`, in order: its rows, each in one of the views, drawn evenly.

    rows: those it is trained on, 0 <= row < table. Row r in view v is v * table + r of the features of all views,
    one after the other; so with one view these are the rows themselves, in batch_order.
    """
    order = rows[batch_order(index, epoch, len(rows))]
    if views == 1:
        return order
    return order + table * np.random.default_rng([_VIEW, index, epoch]).integers(views, size=len(rows))


def initial_head(index: int, classes: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The untrained head of reference `index` where the recipe starts uniform, not at zero.

    Weight (C, D) and bias (C,) float64, uniform in (-1/sqrt(D), 1/sqrt(D)) as torch.nn.Linear's,
    D = width.
    """
    rng = np.random.default_rng([_INITIAL, index])
    bound = width**-0.5
    return rng.uniform(-bound, bound, (classes, width)), rng.uniform(-bound, bound, classes)


def poisson_batch(index: int, epoch: int, step: int, size: int, rate: float) -> NDArray[np.int64]:
    """Which of its `size` examples reference `index` takes in a step of DP-SGD: each with probability `rate`."""
    return np.flatnonzero(np.random.default_rng([_POISSON, index, epoch, step]).random(size) < rate)


def gradient_noise(index: int, epoch: int, step: int, shape: Sequence[int]) -> NDArray[np.float64]:
    """Standard normal noise of one step of DP-SGD; shape of a reference's parameters: a head's are (C, D + 1)."""
    return np.random.default_rng([_NOISE, index, epoch, step]).standard_normal(shape)


def initial_update(index: int, place: int, rank: int, width: int) -> NDArray[np.float64]:
    """How the `place`-th low-rank update of reference `index` starts: down (rank, width); up starts at zero.

    Uniform in (-1/sqrt(width), 1/sqrt(width)), as torch.nn.Linear's and as LoRA's own code has it.
    """
    bound = width**-0.5
    return np.random.default_rng([_UPDATE, index, place]).uniform(-bound, bound, (rank, width))


def initial_network(index: int) -> int:
    """The seed from which torch draws the untrained network of reference `index`."""
    return int(np.random.default_rng([_NETWORK, index]).integers(2**63))
