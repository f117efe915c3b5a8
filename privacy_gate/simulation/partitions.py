"""Which client holds which rows, and how differently their classes are spread.

A partition is a list of K arrays of row numbers, each ascending, that share no row; `with_minimum` leaves none of
them empty. Axis letters as in evidence.py.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Floats, Ints
from privacy_gate.dossier.federation.needs import unmet_by_rows
from privacy_gate.errors import ConfigurationError

Rows = NDArray[np.int64]
Partitioner = Callable[..., list[Rows]]
"""(label (N,), clients, rng, *, parameters) -> K arrays of rows."""


def iid(label: Ints, clients: int, rng: np.random.Generator) -> list[Rows]:
    """Every client a random N/K of the rows."""
    return _ascending(np.array_split(rng.permutation(len(label)), clients))


def dirichlet_by_class(label: Ints, clients: int, rng: np.random.Generator, *, alpha: float) -> list[Rows]:
    """The rows of each class, split in shares ~ Dirichlet(alpha): Yurochkin et al. 2019. Clients differ in size."""
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for name in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == name))
        edges = np.round(np.cumsum(_dirichlet(alpha, clients, rng))[:-1] * len(rows)).astype(np.int64)
        for part, share in zip(parts, np.split(rows, edges), strict=True):
            part.append(share)
    return _ascending([np.concatenate(part) for part in parts])


def dirichlet_by_client(label: Ints, clients: int, rng: np.random.Generator, *, alpha: float) -> list[Rows]:
    """Every client N/K rows, of classes in shares ~ Dirichlet(alpha): Hsu et al. 2019 (arXiv 1909.06335).

    Where a class has run out, the client's other shares grow; so clients served last are less free.
    """
    names, code = np.unique(label, return_inverse=True)
    pools = [rng.permutation(np.flatnonzero(code == index)) for index in range(len(names))]
    left = np.array([len(pool) for pool in pools])
    parts = []
    for size in [len(part) for part in np.array_split(np.arange(len(label)), clients)]:
        take = _rows_of_each(_dirichlet(alpha, len(names), rng), left, size, rng)
        parts.append(
            np.concatenate([pool[rest - count : rest] for pool, rest, count in zip(pools, left, take, strict=True)])
        )
        left = left - take
    return _ascending(parts)


def shards(label: Ints, clients: int, rng: np.random.Generator, *, per_client: int = 2) -> list[Rows]:
    """Rows sorted by class and cut into equal shards; every client so many: McMahan et al. 2017 (arXiv 1602.05629)."""
    order = np.argsort(label + rng.random(len(label)), kind="stable")
    pieces = np.array_split(order, clients * per_client)
    deal = rng.permutation(len(pieces)).reshape(clients, per_client)
    return _ascending([np.concatenate([pieces[index] for index in hand]) for hand in deal])


def pathological(label: Ints, clients: int, rng: np.random.Generator, *, classes: int = 2) -> list[Rows]:
    """Every client rows of so many classes and no others; each class dealt evenly among those who hold it."""
    names = np.unique(label)
    if not 1 <= classes <= len(names) or clients * classes < len(names):
        raise ConfigurationError(
            f"{clients} clients with {classes} classes each cannot hold {len(names)} classes: expected 1 to "
            f"{len(names)} classes a client, and together at least {len(names)}"
        )
    # Dealt in turn from one shuffled ring, so no client gets a class twice and no class is left out.
    ring = rng.permutation(names)
    hands = [[ring[(client * classes + index) % len(names)] for index in range(classes)] for client in range(clients)]
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for name in names:
        holders = [client for client, hand in enumerate(hands) if name in hand]
        pieces = np.array_split(rng.permutation(np.flatnonzero(label == name)), len(holders))
        for client, piece in zip(holders, pieces, strict=True):
            parts[client].append(piece)
    return _ascending([np.concatenate(part) for part in parts])


def by_column(client: NDArray[Any]) -> list[Rows]:
    """Rows (N,) by the client named in each; clients in order of their names."""
    names, code = np.unique(client, return_inverse=True)
    return [np.flatnonzero(code == index) for index in range(len(names))]


PARTITIONS: dict[str, Partitioner] = {
    "iid": iid,
    "dirichlet_by_class": dirichlet_by_class,
    "dirichlet_by_client": dirichlet_by_client,
    "shards": shards,
    "pathological": pathological,
}
"""Every partition by the name that recipes use, but COLUMN."""

COLUMN = "column"
"""The partition that the data itself names, by `by_column`."""


@dataclass(frozen=True)
class Partition:
    """A partition by name, its parameters, and the fewest rows a client holds; refuses what does not exist."""

    name: str = "iid"
    parameters: tuple[tuple[str, float], ...] = ()
    minimum: int = 1

    def __post_init__(self) -> None:
        if self.name not in {*PARTITIONS, COLUMN}:
            raise ConfigurationError(
                f"no partition is called {self.name!r}: choose of {', '.join([*PARTITIONS, COLUMN])}"
            )
        known = {} if self.name == COLUMN else inspect.signature(PARTITIONS[self.name]).parameters
        allowed = {name: each for name, each in known.items() if each.kind is each.KEYWORD_ONLY}
        given = [name for name, _ in self.parameters]
        if set(given) - set(allowed) or any(
            each.default is each.empty and name not in given for name, each in allowed.items()
        ):
            raise ConfigurationError(
                f"{self.name} is given {', '.join(given) or 'nothing'}, and takes {', '.join(allowed) or 'nothing'}"
            )
        if self.minimum < 1:
            raise ConfigurationError(f"minimum is {self.minimum} rows a client, expected at least 1")

    def rows(
        self, label: Ints, clients: int, rng: np.random.Generator, client: NDArray[Any] | None = None
    ) -> list[Rows]:
        """The rows of each client; label (N,), and client (N,) names where the partition is by column.

        A column is taken as it is, whatever the minimum: who holds what is a fact. Raises ConfigurationError where
        its clients are not as many as expected.
        """
        if self.name != COLUMN:
            return with_minimum(PARTITIONS[self.name](label, clients, rng, **dict(self.parameters)), self.minimum, rng)
        if client is None:
            raise ConfigurationError("a partition by column needs a client column, and the data has none")
        parts = by_column(client)
        if len(parts) != clients:
            raise ConfigurationError(f"the client column names {len(parts)} clients, expected {clients}")
        return parts


def partition(name: str, *, minimum: int = 1, **parameters: float) -> Partition:
    """A partition with parameters by name.

    >>> partition("dirichlet_by_class", alpha=0.5).parameters
    (('alpha', 0.5),)
    """
    return Partition(name, tuple(sorted(parameters.items())), minimum)


def with_minimum(parts: Sequence[Rows], minimum: int, rng: np.random.Generator) -> list[Rows]:
    """The same partition after clients with fewer than `minimum` rows were given some of the largest's.

    Ends: every move is of a row that its owner can spare. Raises ConfigurationError where N < K minimum.
    """
    found, rows = [np.asarray(part, dtype=np.int64) for part in parts], sum(len(part) for part in parts)
    if reason := unmet_by_rows(rows, len(found), minimum):
        raise ConfigurationError(reason)
    for poor in range(len(found)):
        while len(found[poor]) < minimum:
            rich = int(np.argmax([len(part) for part in found]))
            count = min(minimum - len(found[poor]), len(found[rich]) - minimum)
            moved = rng.choice(len(found[rich]), count, replace=False)
            found[poor] = np.append(found[poor], found[rich][moved])
            found[rich] = np.delete(found[rich], moved)
    return _ascending(found)


def class_shares(parts: Sequence[Rows], label: Ints, classes: int) -> Floats:
    """How each client's rows are spread over the classes: (K, C), rows sum to 1."""
    counts = np.array([np.bincount(label[part], minlength=classes) for part in parts], dtype=np.float64)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def heterogeneity(parts: Sequence[Rows], label: Ints) -> float:
    """Mean over clients of the total variation distance between their classes and everyone's: 0 alike, 1 at most.

    >>> heterogeneity([np.array([0, 1]), np.array([2, 3])], np.array([0, 0, 1, 1]))
    0.5
    """
    shares = class_shares(parts, label, int(label.max()) + 1)
    whole = class_shares([np.concatenate(parts)], label, shares.shape[1])
    return float(np.abs(shares - whole).sum(axis=1).mean() / 2)


def _dirichlet(alpha: float, size: int, rng: np.random.Generator) -> Floats:
    """Shares (size,) ~ Dirichlet(alpha), also where alpha is so small that every gamma variate underflows."""
    if not alpha > 0:
        raise ConfigurationError(f"alpha is {alpha}, expected a number above 0: 0.1 is very uneven, 100 nearly even")
    shares = rng.dirichlet(np.full(size, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return np.asarray(shares)
    return np.asarray(np.eye(size)[rng.integers(size)])


def _rows_of_each(shares: Floats, left: Ints, size: int, rng: np.random.Generator) -> Ints:
    """How many rows of each class to take, `size` in all, close to the shares and none more than are left.

    Ends: every turn takes all that is missing, or exhausts a class.
    """
    take = np.zeros(len(left), dtype=np.int64)
    while (missing := size - int(take.sum())) > 0:
        weight = np.where(left > take, np.maximum(shares, 1e-12), 0.0)
        take = np.minimum(left, take + rng.multinomial(missing, weight / weight.sum()))
    return take


def _ascending(parts: Sequence[Rows]) -> list[Rows]:
    return [np.sort(part).astype(np.int64) for part in parts]
