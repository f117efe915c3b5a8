"""Merges stores, such as those from the parts of a CI matrix, into one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.errors import ConflictError, StoreError
from privacy_gate.progress import Progress, silent
from privacy_gate.store.contents import read_note, unpack
from privacy_gate.store.place import Place
from privacy_gate.store.shelf import NOTE, RESULT, fault

NOISE = 1e-2
"""Tolerated difference between two results of one job: |a - b| <= NOISE (1 + |a|).

Confidences are in nats, with a spread of about 1 across references. Heads trained on different devices differ by less
than a tenth of NOISE.
"""

ASIDE = frozenset({"log", "epsilon"})
"""Arrays that only one of two results may have: a program's output, and the epsilon, which needs Opacus."""

UNLIKE = frozenset({"log"})
"""Arrays that may differ, because a log contains times. No figure depends on them."""

FLIPS = 1e-3
"""Tolerated share of boolean entries that differ, because rounding decides near ties."""


@dataclass(frozen=True)
class Merged:
    """Number of results that were copied, and number that were already present."""

    copied: int
    present: int


def merge(parts: Sequence[Place], into: Place, *, keep_first: bool = False, progress: Progress = silent) -> Merged:
    """Copies results that `into` lacks from the parts. Changes no result that `into` already has.

    If several stores have a result for the same job, the first is kept: `into`, then the parts in the given order. The
    results must agree (see `agree`), unless `keep_first` is set, since networks trained on different devices may
    diverge. Notes are times, and the earliest is kept.
    Raises ConflictError (exit 7) with the paths if results disagree; nothing is written then. Raises StoreError for a
    damaged file, which is never copied.
    """
    # All comparisons come before the first write, so that a conflict leaves `into` unchanged.
    results, notes = _held((into, *parts), RESULT), _held((into, *parts), NOTE)
    if not keep_first:
        _refuse_conflicts(results, progress)
    new = [path for path, places in results.items() if into not in places]
    for done, path in enumerate(new, 1):
        into.write(path, _sound(results[path][0], path))
        progress("copy results", done, len(new))
    for path, places in notes.items():
        _keep_earliest(path, places, into)
    return Merged(len(new), len(results) - len(new))


def _held(places: Sequence[Place], pattern: re.Pattern[str]) -> dict[str, list[Place]]:
    """The places that have each file whose path matches, by path, in the order of places."""
    held: dict[str, list[Place]] = {}
    for place in places:
        for file in place.walk():
            if pattern.fullmatch(file.path):
                held.setdefault(file.path, []).append(place)
    return held


def _refuse_conflicts(held: Mapping[str, Sequence[Place]], progress: Progress) -> None:
    """Compares the results that several places have. Raises ConflictError with all that disagree."""
    shared = {path: places for path, places in held.items() if len(places) > 1}
    conflicts = []
    for done, (path, (first, *others)) in enumerate(shared.items(), 1):
        payload = _sound(first, path)
        for other in others:
            copy = _sound(other, path)
            if payload != copy and not agree(unpack(payload, path)[1], unpack(copy, path)[1]):
                conflicts.append(f"{path} in {first.root} and {other.root}")
        progress("compare results", done, len(shared))
    if conflicts:
        raise ConflictError(
            f"{len(conflicts)} results contradict each other beyond rounding: {'; '.join(conflicts)}; nothing was "
            "written: find out which result is wrong and delete it, or keep the first with --keep-first"
        )


def agree(one: Arrays, other: Arrays) -> bool:
    """Whether two results of one job are equal up to floating-point noise: see NOISE, FLIPS, ASIDE and UNLIKE."""
    shared = one.keys() & other.keys()
    return one.keys() ^ other.keys() <= ASIDE and all(_alike(one[name], other[name]) for name in shared - UNLIKE)


def _alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "b":
        return bool((a != b).sum() <= FLIPS * a.size)
    if a.dtype.kind == "f":
        # allclose measures against its second argument: |a - b| <= NOISE (1 + |a|).
        return np.allclose(b, a, rtol=NOISE, atol=NOISE, equal_nan=True)
    return np.array_equal(a, b)


def _sound(place: Place, path: str) -> bytes:
    """The result's bytes. Raises StoreError if they are damaged, or were deleted during the merge."""
    payload = _there(place, path)
    if damage := fault(payload, f"{place.root}/{path}"):
        raise StoreError(damage)
    return payload


def _there(place: Place, path: str) -> bytes:
    payload = place.read(path)
    if payload is None:
        raise StoreError(f"store {place.root}: {path} was deleted during the merge; run the command again")
    return payload


def _keep_earliest(path: str, places: Sequence[Place], into: Place) -> None:
    """Stores the earliest note in `into`. Times are notes in ISO 8601 and UTC, which sort as text."""
    notes = [(read_note(_there(place, path), f"{place.root}/{path}"), place) for place in places]
    earliest, _ = min(notes, key=itemgetter(0))
    if (earliest, into) not in notes:  # else `into` already has the earliest
        into.replace(path, earliest.encode())
