"""Which client holds which rows, and how much clients differ in their classes.

A partition is a list of K disjoint arrays of row numbers, each in ascending order; `with_minimum` ensures that none is
empty. Axis letters: evidence.py.
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
    """Every client gets a random N/K of the rows."""
    return _ascending(np.array_split(rng.permutation(len(label)), clients))


def dirichlet_by_class(label: Ints, clients: int, rng: np.random.Generator, *, alpha: float) -> list[Rows]:
    """Rows of each class are split in shares ~ Dirichlet(alpha): Yurochkin et al. 2019. Clients differ in size."""
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for name in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == name))
        edges = np.round(np.cumsum(_dirichlet(alpha, clients, rng))[:-1] * len(rows)).astype(np.int64)
        for part, share in zip(parts, np.split(rows, edges), strict=True):
            part.append(share)
    return _ascending([np.concatenate(part) for part in parts])


def dirichlet_by_client(label: Ints, clients: int, rng: np.random.Generator, *, alpha: float) -> list[Rows]:
    """Every client gets N/K rows, with class shares ~ Dirichlet(alpha): Hsu et al. 2019 (arXiv 1909.06335).

    If a class runs out, the client's other shares grow; so the last clients follow their drawn shares less closely.
    """
    names, code = np.unique(label, return_inverse=True)
    # Each class is a shuffled pool; clients take from its end, and `left` counts the rows that remain.
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
    """Rows sorted by class, cut in equal shards, `per_client` for each: McMahan et al. 2017 (arXiv 1602.05629)."""
    # Adding a random number below 1 shuffles the rows within each class.
    order = np.argsort(label + rng.random(len(label)), kind="stable")
    pieces = np.array_split(order, clients * per_client)
    deal = rng.permutation(len(pieces)).reshape(clients, per_client)
    return _ascending([np.concatenate([pieces[index] for index in hand]) for hand in deal])


def pathological(label: Ints, clients: int, rng: np.random.Generator, *, classes: int = 2) -> list[Rows]:
    """Every client holds rows of exactly `classes` classes; each class is split evenly among its holders."""
    names = np.unique(label)
    if not 1 <= classes <= len(names) or clients * classes < len(names):
        raise ConfigurationError(
            f"{clients} clients with {classes} classes each cannot hold {len(names)} classes: set `classes` to 1 to "
            f"{len(names)} per client, so that clients * classes >= {len(names)}"
        )
    # Classes are dealt in turn from one shuffled ring, so no client gets a class twice and every class is dealt.
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
    """One array of rows per client, from the client name of each row (N,); clients sorted by name."""
    names, code = np.unique(client, return_inverse=True)
    return [np.flatnonzero(code == index) for index in range(len(names))]


PARTITIONS: dict[str, Partitioner] = {
    "iid": iid,
    "dirichlet_by_class": dirichlet_by_class,
    "dirichlet_by_client": dirichlet_by_client,
    "shards": shards,
    "pathological": pathological,
}
"""Every partition by the name that recipes use, except COLUMN."""

COLUMN = "column"
"""The partition that the data's client column defines: see `by_column`."""


@dataclass(frozen=True)
class Partition:
    """A partition by name, its parameters, and each client's minimum of rows.

    Raises ConfigurationError on an unknown name, on unknown or missing parameters, and on a minimum below 1.
    """

    name: str = "iid"
    parameters: tuple[tuple[str, float], ...] = ()
    minimum: int = 1

    def __post_init__(self) -> None:
        if self.name not in {*PARTITIONS, COLUMN}:
            raise ConfigurationError(
                f"no partition is called {self.name!r}: use one of {', '.join([*PARTITIONS, COLUMN])}"
            )
        known = {} if self.name == COLUMN else inspect.signature(PARTITIONS[self.name]).parameters
        # A partition's parameters are its keyword-only arguments; those without a default are required.
        allowed = {name: parameter for name, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY}
        given = [name for name, _ in self.parameters]
        if set(given) - set(allowed) or any(
            parameter.default is parameter.empty and name not in given for name, parameter in allowed.items()
        ):
            raise ConfigurationError(
                f"partition {self.name} takes the parameters {', '.join(allowed) or 'none'}, "
                f"found {', '.join(given) or 'none'}"
            )
        if self.minimum < 1:
            raise ConfigurationError(f"minimum is {self.minimum} rows per client, expected at least 1")

    def rows(
        self, label: Ints, clients: int, rng: np.random.Generator, client: NDArray[Any] | None = None
    ) -> list[Rows]:
        """The rows of each client; label (N,), and client (N,) names if the partition is by column.

        A column is used unchanged, whatever the minimum: it says which rows clients really hold. Raises
        ConfigurationError if it names more or fewer clients than expected.
        """
        if self.name != COLUMN:
            return with_minimum(PARTITIONS[self.name](label, clients, rng, **dict(self.parameters)), self.minimum, rng)
        if client is None:
            raise ConfigurationError("a partition by column needs a client column, but the data has none: add one")
        parts = by_column(client)
        if len(parts) != clients:
            raise ConfigurationError(f"the client column names {len(parts)} clients, expected {clients}")
        return parts


def partition(name: str, *, minimum: int = 1, **parameters: float) -> Partition:
    """A partition with its parameters as keyword arguments.

    >>> partition("dirichlet_by_class", alpha=0.5).parameters
    (('alpha', 0.5),)
    """
    return Partition(name, tuple(sorted(parameters.items())), minimum)


def with_minimum(parts: Sequence[Rows], minimum: int, rng: np.random.Generator) -> list[Rows]:
    """The same partition, with random rows of the largest clients moved to clients that have fewer than `minimum`.

    Terminates: a client never gives rows that it needs for its own minimum. Raises ConfigurationError if
    N < K * minimum.
    """
    filled, rows = [np.asarray(part, dtype=np.int64) for part in parts], sum(len(part) for part in parts)
    if reason := unmet_by_rows(rows, len(filled), minimum):
        raise ConfigurationError(reason)
    for poor in range(len(filled)):
        while len(filled[poor]) < minimum:
            rich = int(np.argmax([len(part) for part in filled]))
            count = min(minimum - len(filled[poor]), len(filled[rich]) - minimum)
            moved = rng.choice(len(filled[rich]), count, replace=False)
            filled[poor] = np.append(filled[poor], filled[rich][moved])
            filled[rich] = np.delete(filled[rich], moved)
    return _ascending(filled)


def class_shares(parts: Sequence[Rows], label: Ints, classes: int) -> Floats:
    """Class frequencies of each client: (K, C), rows sum to 1."""
    counts = np.array([np.bincount(label[part], minlength=classes) for part in parts], dtype=np.float64)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def heterogeneity(parts: Sequence[Rows], label: Ints) -> float:
    """Mean total variation distance between a client's class frequencies and those of all rows: 0 equal, at most 1.

    >>> heterogeneity([np.array([0, 1]), np.array([2, 3])], np.array([0, 0, 1, 1]))
    0.5
    """
    shares = class_shares(parts, label, int(label.max()) + 1)
    whole = class_shares([np.concatenate(parts)], label, shares.shape[1])
    return float(np.abs(shares - whole).sum(axis=1).mean() / 2)


def _dirichlet(alpha: float, size: int, rng: np.random.Generator) -> Floats:
    """Shares (size,) ~ Dirichlet(alpha), even if alpha is so small that every gamma variate underflows."""
    if not alpha > 0:
        raise ConfigurationError(f"alpha is {alpha}, expected a number above 0: 0.1 is very uneven, 100 nearly even")
    shares = rng.dirichlet(np.full(size, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return np.asarray(shares)
    # As alpha goes to 0, Dirichlet(alpha) puts all mass on one uniformly chosen share.
    return np.asarray(np.eye(size)[rng.integers(size)])


def _rows_of_each(shares: Floats, left: Ints, size: int, rng: np.random.Generator) -> Ints:
    """How many rows to take of each class, `size` in total, close to the shares, and never more than are left.

    Terminates: every iteration takes all rows that are still missing, or exhausts a class.
    """
    take = np.zeros(len(left), dtype=np.int64)
    while (missing := size - int(take.sum())) > 0:
        # The floor of 1e-12 keeps classes available whose share has underflowed to 0.
        weight = np.where(left > take, np.maximum(shares, 1e-12), 0.0)
        take = np.minimum(left, take + rng.multinomial(missing, weight / weight.sum()))
    return take


def _ascending(parts: Sequence[Rows]) -> list[Rows]:
    return [np.sort(part).astype(np.int64) for part in parts]
