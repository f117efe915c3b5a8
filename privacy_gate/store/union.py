"""The union of stores: what the parts of a CI matrix computed, in one place."""

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
"""How far two results of one job may lie apart: |a - b| <= NOISE (1 + |a|). Confidences are in nats, and spread over
references by about one. Heads trained on unlike devices differ by less than a tenth of this."""

ASIDE = frozenset({"log", "epsilon"})
"""Arrays that may stand in one of two results alone: what a program printed, and what is stored where Opacus is."""

UNLIKE = frozenset({"log"})
"""Arrays that may differ: a log tells times. No figure is made of them."""

FLIPS = 1e-3
"""Share of an array's yes-or-no entries that may differ: near ties are decided by rounding."""


@dataclass(frozen=True)
class Merged:
    """How many results were copied, and how many were there already."""

    copied: int
    present: int


def merge(parts: Sequence[Place], into: Place, *, keep_first: bool = False, progress: Progress = silent) -> Merged:
    """Copies into one store what the parts hold and it does not; changes no result that it holds.

    Where several hold the same job, the first stays: `into`, then the parts in their order. They must agree, as `agree`
    says, or `keep_first` says that they need not (networks trained on unlike devices may drift apart).
    Of notes, which are times, the earliest stays. Raises ConflictError (exit 7), with names, where results contradict
    each other: then nothing is written. Raises StoreError for a damaged file, which is never copied.
    """
    results, notes = _held((into, *parts), RESULT), _held((into, *parts), NOTE)
    if not keep_first:
        _refuse_conflicts(results, progress)
    fresh = [path for path, places in results.items() if into not in places]
    for done, path in enumerate(fresh, 1):
        into.write(path, _sound(results[path][0], path))
        progress("copy results", done, len(fresh))
    for path, places in notes.items():
        _keep_earliest(path, places, into)
    return Merged(len(fresh), len(results) - len(fresh))


def _held(places: Sequence[Place], pattern: re.Pattern[str]) -> dict[str, list[Place]]:
    """Who holds which file of that kind, in the order of places."""
    held: dict[str, list[Place]] = {}
    for place in places:
        for found in place.walk():
            if pattern.fullmatch(found.path):
                held.setdefault(found.path, []).append(place)
    return held


def _refuse_conflicts(held: Mapping[str, Sequence[Place]], progress: Progress) -> None:
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
            "written: find out which is wrong and delete it, or let the first stay with --keep-first"
        )


def agree(one: Arrays, other: Arrays) -> bool:
    """Whether two results of one job are the same up to floating-point noise: see NOISE, FLIPS, ASIDE and UNLIKE."""
    shared = one.keys() & other.keys()
    return one.keys() ^ other.keys() <= ASIDE and all(_alike(one[name], other[name]) for name in shared - UNLIKE)


def _alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "b":
        return bool((a != b).sum() <= FLIPS * a.size)
    if a.dtype.kind == "f":
        return np.allclose(b, a, rtol=NOISE, atol=NOISE, equal_nan=True)
    return np.array_equal(a, b)


def _sound(place: Place, path: str) -> bytes:
    """The result's bytes. Raises StoreError where they are damaged or were deleted meanwhile."""
    payload = _there(place, path)
    if wrong := fault(payload, f"{place.root}/{path}"):
        raise StoreError(wrong)
    return payload


def _there(place: Place, path: str) -> bytes:
    payload = place.read(path)
    if payload is None:
        raise StoreError(f"store {place.root}: {path} was deleted while it was merged; run again")
    return payload


def _keep_earliest(path: str, places: Sequence[Place], into: Place) -> None:
    notes = [(read_note(_there(place, path), f"{place.root}/{path}"), place) for place in places]
    earliest, _ = min(notes, key=itemgetter(0))
    if (earliest, into) not in notes:
        into.replace(path, earliest.encode())
