"""What a store holds, and keeping it in order: list, prune, verify.

What a running process is writing is left alone. One that needs a result which is deleted meanwhile ends with exit
code 6, and computes it again when it is run again.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from privacy_gate.errors import ConfigurationError, StoreError
from privacy_gate.jobs.digests import current, digest_of
from privacy_gate.store import path_of
from privacy_gate.store.contents import Label, header_size, read_label, read_note, unpack
from privacy_gate.store.place import DRAFT, START, Found, Place

ABANDONED = datetime.timedelta(days=1)
"""A draft older than this has no writer any more: writing takes seconds."""

RESULT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}\.safetensors")
"""Where results lie; any other file is not ours and is left alone."""

NOTE = re.compile(r"notes/[0-9a-f]{64}")

STUDIES = {"Federate", "Confirm", "Probe"}
"""Kinds of results by which a federation is studied, under its own recipe or one that differs in STUDIED."""

STUDIED = {"federation", "adaptation", "lora", "precision", "seed"}

_AGE = re.compile(r"(\d{1,5})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_AT_ONCE = 256


@dataclass(frozen=True)
class Entry:
    """One result: its file, and its label; None where the label cannot be read."""

    file: Found
    label: Label | None

    @property
    def name(self) -> str:
        """The digest in the file's name."""
        return PurePosixPath(self.file.path).stem

    @property
    def kind(self) -> str:
        return "damaged" if self.label is None else str(self.label.job.get("kind"))

    @property
    def current(self) -> bool:
        """Whether this version of the gate can ask for it."""
        return self.label is not None and current(self.label.job)

    @property
    def recipe(self) -> str:
        """What names the recipe, 12 hex digits; of features and controls: their backbone, see `backbone`. Or empty."""
        recipe = None if self.label is None else self.label.job.get("recipe")
        return _short(_without_seed(recipe)) if recipe else self.backbone

    @property
    def backbone(self) -> str:
        """What names the backbone and its input, 12 hex digits; empty where there is none."""
        holder = {} if self.label is None else self.label.job.get("recipe") or self.label.job
        return _short([holder.get("backbone"), holder.get("input")]) if holder.get("backbone") else ""

    @property
    def family(self) -> str:
        """What names the recipe but for how it federates and what of the network is trained, 12 hex digits; empty where
        there is no federation. Studies of a federation change the one, and screen heads in place of networks.
        """
        recipe = {} if self.label is None else self.label.job.get("recipe") or {}
        if not recipe.get("federation"):
            return ""
        return _short({name: value for name, value in recipe.items() if name not in STUDIED})

    @property
    def summary(self) -> str:
        """The recipe in a few words."""
        if self.label is None:
            return ""
        holder = self.label.job.get("recipe") or self.label.job
        words = [(holder.get("backbone") or {}).get("name"), holder.get("adaptation")]
        if optimizer := holder.get("optimizer"):
            words += [optimizer.get("name"), f"lr {optimizer.get('lr'):g}", f"{holder.get('epochs')} epochs"]
        if federation := holder.get("federation"):
            words.append(f"federated, {federation.get('rounds')} rounds")
        return " ".join(str(word) for word in words if word)


@dataclass(frozen=True)
class Group:
    """Results alike but for their index: how many, bytes, and when the first and last of them were written."""

    kind: str
    recipe: str
    summary: str
    dataset: str
    torch: str
    device: str
    count: int
    size: int
    oldest: datetime.datetime | None
    newest: datetime.datetime | None


@dataclass(frozen=True)
class Waste:
    """What can go: results, and drafts that their writers left."""

    results: tuple[Entry, ...]
    drafts: tuple[Found, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.file.size for entry in self.results) + sum(draft.size for draft in self.drafts)


def entries(place: Place) -> Iterator[Entry]:
    """Every result of the store, in the order of names. Only labels are read, not arrays."""
    files = [found for found in place.walk() if RESULT.fullmatch(found.path)]
    for first in range(0, len(files), _AT_ONCE):
        some = files[first : first + _AT_ONCE]
        for found, start in zip(some, place.starts([file.path for file in some]), strict=True):
            if start is not None and START < header_size(start) <= found.size:
                start = place.read(found.path)  # noqa: PLW2901 - a rare long label
            if start is not None:  # else deleted meanwhile
                yield Entry(found, _label(start, found.path))


def groups(listed: Sequence[Entry]) -> list[Group]:
    """The entries, those put together that differ only in their index, first row or part."""
    alike: dict[tuple[str, ...], list[Entry]] = {}
    for entry in listed:
        job, made = ({}, {}) if entry.label is None else (entry.label.job, entry.label.made)
        dataset = str(job.get("dataset", ""))[:12]
        key = (entry.kind, entry.recipe, entry.summary, dataset, made.get("torch", ""), made.get("device", ""))
        alike.setdefault(key, []).append(entry)
    return [_group(key, alike[key]) for key in sorted(alike)]


def waste(
    place: Place,
    now: datetime.datetime,
    *,
    older_than: datetime.timedelta | None = None,
    keep: Collection[str] = (),
    other_formats: bool = False,
) -> Waste:
    """What a store can do without. Deletes nothing.

    older_than     results computed longer ago, however often they were used since; one of unknown age stays
    keep           recipes (Entry.recipe) whose results stay, the features that they stand on, and the studies of their
                   federation
    other_formats  results that this version of the gate cannot ask for

    A draft goes a day after it was begun: what a running process writes stays. Notes always stay.
    Raises ConfigurationError for a recipe to be kept that the store does not hold.
    """
    listed = list(entries(place)) if older_than is not None or other_formats or keep else []
    if unknown := set(keep) - {entry.recipe for entry in listed}:
        raise ConfigurationError(
            f"--keep-recipe {min(unknown)}: the store {place.root} has no such recipe; `privacy-gate store list` "
            "names them"
        )
    named = [entry for entry in listed if entry.recipe in keep]
    kept, studied = {*keep, *(entry.backbone for entry in named)}, {entry.family for entry in named} - {""}
    results = tuple(
        entry
        for entry in listed
        if not (entry.recipe in kept or (entry.kind in STUDIES and entry.family in studied))
        and ((older_than is not None and _older(entry.file, now, older_than)) or (other_formats and _foreign(entry)))
    )
    drafts = tuple(found for found in place.walk() if found.path.endswith(DRAFT) and _older(found, now, ABANDONED))
    return Waste(results, drafts)


def remove(place: Place, found: Waste) -> None:
    """Deletes what `waste` found."""
    for file in (*(entry.file for entry in found.results), *found.drafts):
        place.remove(file.path)


def verify(place: Place) -> Iterator[tuple[str, str | None]]:
    """Reads every result and every note whole: its path, and what is wrong with it or None.

    Sound is a result whose content has the recorded digest and whose name is the digest of the job inside, and a note
    that is text.
    """
    for found in place.walk():
        check = fault if RESULT.fullmatch(found.path) else note_fault if NOTE.fullmatch(found.path) else None
        payload = place.read(found.path) if check else None
        if check and payload is not None:  # else a stranger's file, or pruned meanwhile
            yield found.path, check(payload, f"{place.root}/{found.path}")


def fault(payload: bytes, path: str) -> str | None:
    """What is wrong with a result's bytes, or None."""
    try:
        label, _ = unpack(payload, path)
    except StoreError as error:
        return str(error)
    if not path.endswith(path_of(digest_of(label.job))):
        return f"store: {path} is damaged: it holds the result of another job"
    return None


def note_fault(payload: bytes, path: str) -> str | None:
    """What is wrong with a note's bytes, or None."""
    try:
        read_note(payload, path)
    except StoreError as error:
        return str(error)
    return None


def age(text: str) -> datetime.timedelta:
    """How long `30d` is; hours, days or weeks. Raises ConfigurationError for anything else.

    >>> age("2w").days
    14
    """
    matched = _AGE.fullmatch(text)
    if matched is None:
        raise ConfigurationError(f"--older-than {text}: write a number of hours, days or weeks, for instance 30d")
    return datetime.timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _label(start: bytes, path: str) -> Label | None:
    try:
        return read_label(start, path)
    except StoreError:
        return None


def _group(key: tuple[str, ...], alike: Sequence[Entry]) -> Group:
    kind, recipe, summary, dataset, torch, device = key
    written = [entry.file.modified for entry in alike if entry.file.modified is not None]
    size = sum(entry.file.size for entry in alike)
    first, last = min(written, default=None), max(written, default=None)
    return Group(kind, recipe, summary, dataset, torch, device, len(alike), size, first, last)


def _older(found: Found, now: datetime.datetime, limit: datetime.timedelta) -> bool:
    return found.modified is not None and now - found.modified > limit


def _foreign(entry: Entry) -> bool:
    """A sound result of another version; a damaged one is for `verify` to name."""
    return entry.label is not None and not entry.current


def _without_seed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The candidate's result has the recipe's seed, its references do not."""
    return {name: value for name, value in recipe.items() if name != "seed"}


def _short(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
