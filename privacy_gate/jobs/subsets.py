"""The random parts of a reference: its training rows, the order of its batches, its initial head.

Every draw comes from a generator keyed by its purpose and the reference's index, never by the number of references.
So references 64 to 127 can be added to the first 64 without changing them.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.errors import EvidenceError

Subset = tuple[int, NDArray[np.int64]]
"""A reference's index and its training rows."""

# Keys of the streams of random numbers. Stored references depend on them, so they must never change.
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
    """The smallest number of references in which every row of the pool is at least once in and at least once out.

    It is ceil(max(1/p, 1/(1-p))) with p = size/pool. A number of references that is a multiple of it treats all rows
    most evenly. Raises EvidenceError unless 0 < size < pool.

    pool  number of audited rows (members + holdout)
    size  number of training rows of each reference

    >>> group_size(1000, 500), group_size(1000, 900)
    (2, 10)
    """
    if not 0 < size < pool:
        raise EvidenceError(
            f"{size} of {pool} audited rows are members, expected at least 1 member and 1 holdout row: "
            "references train on as many rows as the candidate and must leave other rows out; correct split"
        )
    return max(-(-pool // size), -(-pool // (pool - size)))


def included(index: int, pool: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The training rows of reference `index`: (N,) bool, exactly `size` rows from `pool`.

    pool  (N,) bool, True for the audited rows

    References form groups of G = group_size. Each group has one random permutation of the pool, and its reference j
    takes `size` consecutive places of it from place floor(j * pool / G) on, wrapping around at the end. Starts are at
    most `size` and at most pool - size apart, so every row is at least once in and at least once out in each group.
    If size = pool / 2, a group is a pair of complements. Each single reference is a uniformly random subset, and
    groups are independent.
    """
    rows = np.flatnonzero(pool)
    group = group_size(rows.size, size)
    group_index, place = divmod(index, group)
    permuted = np.random.default_rng([_ROWS, group_index]).permutation(rows)
    start = place * rows.size // group
    chosen = np.zeros(len(pool), dtype=np.bool_)
    chosen[np.take(permuted, np.arange(start, start + size), mode="wrap")] = True
    return chosen


def subpool(label: NDArray[np.int64], pool: NDArray[np.bool_], divisor: int) -> NDArray[np.bool_]:
    """A share of 1 / divisor of every class in the pool: (N,) bool.

    label  (N,) class of each row
    pool   (N,) bool, True for the audited rows

    The rows for a larger divisor are a subset of those for a smaller one; divisor 1 gives the pool itself. A class
    keeps at least two rows, so that one can be in and one out.
    """
    chosen = np.zeros(len(pool), dtype=np.bool_)
    for name in np.unique(label[pool]):
        rows = np.flatnonzero(pool & (label == name))
        # One permutation per class for all divisors makes the parts nested.
        order = np.random.default_rng([_PART, int(name)]).permutation(rows)
        chosen[order[: max(2, len(rows) // divisor)]] = True
    return chosen


def training_sets(
    data: AuditData, indices: Iterable[int], divisor: int = 1, without: Sequence[int] = ()
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each reference's index and its training rows in the table, (N,) bool.

    The training rows are the same share of the (reduced) pool as the members are of the whole pool.
    divisor, without: see jobs.kinds.TrainReference.
    """
    pool = data.split != Split.POPULATION
    share = int((data.split == Split.MEMBER).sum()) / int(pool.sum())
    remaining = pool.copy()
    remaining[list(without)] = False
    part = subpool(data.label, remaining, divisor)
    size = round(int(part.sum()) * share)
    for index in indices:
        yield index, included(index, part, size)


def batch_order(index: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order in which reference `index` sees its `size` examples in `epoch` (from 0).

    (size,) int64, a permutation of range(size). Consecutive blocks of batch_size form the batches. The last batch may
    be shorter, as with DataLoader(shuffle=True, drop_last=False).
    """
    return np.random.default_rng([_ORDER, index, epoch]).permutation(size)


def shown(index: int, epoch: int, rows: NDArray[np.int64], views: int, table: int) -> NDArray[np.int64]:
    """The examples that reference `index` sees in `epoch`, in order: each of its rows, in a view drawn uniformly.

    rows   (K,) its training rows, 0 <= row < table
    views  number of views of an image
    table  number of rows in the table

    The result (K,) indexes the features of all views one after the other: row r in view v is v * table + r. With one
    view these are the rows themselves, in batch_order.
    """
    order = rows[batch_order(index, epoch, len(rows))]
    if views == 1:
        return order
    return order + table * np.random.default_rng([_VIEW, index, epoch]).integers(views, size=len(rows))


def initial_head(index: int, classes: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The initial head of reference `index` if the recipe has head: {initial: uniform}.

    Weight (C, D) and bias (C,), float64, uniform in (-1/sqrt(D), 1/sqrt(D)) as in torch.nn.Linear; D = width.
    """
    rng = np.random.default_rng([_INITIAL, index])
    bound = width**-0.5
    return rng.uniform(-bound, bound, (classes, width)), rng.uniform(-bound, bound, classes)


def poisson_batch(index: int, epoch: int, step: int, size: int, rate: float) -> NDArray[np.int64]:
    """Indices of the examples in a step of DP-SGD of reference `index`: each of `size`, with probability `rate`."""
    return np.flatnonzero(np.random.default_rng([_POISSON, index, epoch, step]).random(size) < rate)


def gradient_noise(index: int, epoch: int, step: int, shape: Sequence[int]) -> NDArray[np.float64]:
    """Standard normal noise for one step of DP-SGD, in the shape of the parameters: (C, D + 1) for a head."""
    return np.random.default_rng([_NOISE, index, epoch, step]).standard_normal(shape)


def initial_update(index: int, place: int, rank: int, width: int) -> NDArray[np.float64]:
    """Initial `down` of the `place`-th low-rank update of reference `index`, (rank, width). Its `up` starts at zero.

    Uniform in (-1/sqrt(width), 1/sqrt(width)), as in torch.nn.Linear and in the code of the LoRA paper.
    """
    bound = width**-0.5
    return np.random.default_rng([_UPDATE, index, place]).uniform(-bound, bound, (rank, width))


def initial_network(index: int) -> int:
    """The seed from which torch draws the untrained network of reference `index`."""
    return int(np.random.default_rng([_NETWORK, index]).integers(2**63))
