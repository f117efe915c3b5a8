"""The images that checks show to the candidate, none of which it was trained on."""

import numpy as np
from numpy.typing import NDArray

from privacy_gate.checks.base.check import Subject
from privacy_gate.dossier.dataset import Split

NO_IMAGES = "needs images and a network that runs here: the table has embeddings, or the recipe adaptation: command"


def has_images(subject: Subject) -> bool:
    """Whether there are images, and a network that runs here to read them."""
    return subject.data.image is not None and subject.recipe.adaptation != "command"


def shuffled(subject: Subject) -> NDArray[np.int64]:
    """Holdout rows in an order drawn with the data's digest as the seed."""
    rows = np.flatnonzero(subject.data.split == Split.HOLDOUT)
    rng = np.random.default_rng(int(subject.data.digest[:16], 16))
    return rng.permutation(rows)


def first(subject: Subject, count: int) -> tuple[int, ...]:
    """The first `count` of the shuffled holdout rows, or all if there are fewer, ascending."""
    return tuple(np.sort(shuffled(subject)[:count]).tolist())


def apart(subject: Subject, sought: int, tried: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows to search on, at most half of the holdout, and other rows to try the result on, both ascending."""
    rows = shuffled(subject)
    # The rows to try on come from the front, like those of `first`; the rows to search on from the back.
    border = max(len(rows) - sought, len(rows) // 2)
    on, others = (tuple(np.sort(some).tolist()) for some in (rows[border:], rows[: min(border, tried)]))
    return on, others


def needed_apart(sought: int, tried: int) -> int:
    """Holdout rows below which `apart` leaves fewer than `tried` rows to try something on.

    >>> needed_apart(sought=500, tried=72), needed_apart(sought=50, tried=72)
    (144, 122)
    """
    return min(2 * tried, tried + sought)
