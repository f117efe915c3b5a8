"""Which images checks show the candidate that it was not trained on."""

import numpy as np
from numpy.typing import NDArray

from privacy_gate.checks.base.check import Subject
from privacy_gate.dossier.dataset import Split

NO_IMAGES = "needs images: the table holds embeddings, or a program of the policy's trains"


def has_images(subject: Subject) -> bool:
    """Whether there are images, and a network here that reads them."""
    return subject.data.image is not None and subject.recipe.adaptation != "command"


def shuffled(subject: Subject) -> NDArray[np.int64]:
    """Holdout rows in an order drawn by the data's digest."""
    rows = np.flatnonzero(subject.data.split == Split.HOLDOUT)
    rng = np.random.default_rng(int(subject.data.digest[:16], 16))
    return rng.permutation(rows)


def first(subject: Subject, count: int) -> tuple[int, ...]:
    """As many of them as asked for, as far as there are, ascending."""
    return tuple(np.sort(shuffled(subject)[:count]).tolist())


def apart(subject: Subject, sought: int, tried: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows to seek something on, half of the holdout at most, and others to try it on, both ascending."""
    rows = shuffled(subject)
    border = max(len(rows) - sought, len(rows) // 2)
    on, others = (tuple(np.sort(some).tolist()) for some in (rows[border:], rows[: min(border, tried)]))
    return on, others


def needed_apart(sought: int, tried: int) -> int:
    """Holdout rows below which `apart` leaves fewer than `tried` to try something on.

    >>> needed_apart(sought=500, tried=72), needed_apart(sought=50, tried=72)
    (144, 122)
    """
    return min(2 * tried, tried + sought)
