"""Maintenance of a store: list, prune and verify its files.

Files that a running process is writing are not touched. If a process needs a result that is deleted while it runs, it
ends with exit code 6 and computes the result in its next run.
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
from privacy_gate.store.place import DRAFT, START, Place, StoredFile

ABANDONED = datetime.timedelta(days=1)
"""A draft older than this was abandoned by its writer, since writing takes seconds."""

RESULT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}\.safetensors")
"""Paths of results. Files with other paths do not belong to the store and are not touched."""

NOTE = re.compile(r"notes/[0-9a-f]{64}")
"""Paths of notes."""

STUDIES = {"Federate", "Confirm", "Probe"}
"""Kinds of results that study a federation, under its own recipe or under one that differs only in STUDIED fields."""

STUDIED = {"federation", "adaptation", "lora", "precision", "seed"}
"""Fields of the recipe that studies change."""

_AGE = re.compile(r"(\d{1,5})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}

_AT_ONCE = 256
"""Files whose labels are requested together."""


@dataclass(frozen=True)
class Entry:
    """One result: its file and its label. The label is None if it cannot be read."""

    file: StoredFile
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
        """Whether this version of the gate can use it."""
        return self.label is not None and current(self.label.job)

    @property
    def recipe(self) -> str:
        """12 hex digits that identify the recipe without its seed; for features and controls, those of `backbone`."""
        recipe = None if self.label is None else self.label.job.get("recipe")
        return _short(_without_seed(recipe)) if recipe else self.backbone

    @property
    def backbone(self) -> str:
        """12 hex digits that identify the backbone and its input; empty if the job has no backbone."""
        holder = {} if self.label is None else self.label.job.get("recipe") or self.label.job
        return _short([holder.get("backbone"), holder.get("input")]) if holder.get("backbone") else ""

    @property
    def family(self) -> str:
        """12 hex digits that identify the recipe without the STUDIED fields; empty if the recipe has no federation.

        Studies of a federation change these fields: they try other federations, and train heads instead of networks.
        """
        recipe = {} if self.label is None else self.label.job.get("recipe") or {}
        if not recipe.get("federation"):
            return ""
        return _short({name: value for name, value in recipe.items() if name not in STUDIED})

    @property
    def summary(self) -> str:
        """A short description of the recipe."""
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
    """Results that differ only in their index.

    size            bytes, all together
    oldest, newest  times of writing of the first and the last result; None if unknown
    """

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
    """Files that can be deleted: results, and drafts that their writers abandoned."""

    results: tuple[Entry, ...]
    drafts: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """Bytes, all together."""
        return sum(entry.file.size for entry in self.results) + sum(draft.size for draft in self.drafts)


def entries(place: Place) -> Iterator[Entry]:
    """Every result in the store, sorted by path. Reads labels only, not arrays."""
    files = [file for file in place.walk() if RESULT.fullmatch(file.path)]
    for first in range(0, len(files), _AT_ONCE):
        batch = files[first : first + _AT_ONCE]
        for file, start in zip(batch, place.starts([file.path for file in batch]), strict=True):
            if start is not None and START < header_size(start) <= file.size:
                start = place.read(file.path)  # noqa: PLW2901 - rare: a label longer than START
            if start is not None:  # else the file was deleted after the listing
                yield Entry(file, _label(start, file.path))


def groups(listed: Sequence[Entry]) -> list[Group]:
    """The entries, grouped by everything except their index, first row or part."""
    alike: dict[tuple[str, ...], list[Entry]] = {}
    for entry in listed:
        job, made = ({}, {}) if entry.label is None else (entry.label.job, entry.label.made)
        dataset = str(job.get("dataset", ""))[:12]  # shown in tables, where 64 digits would not fit
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
    """The files that can be deleted. Deletes nothing.

    older_than     include results computed longer ago, even if they were used since; a result of unknown age stays
    keep           recipes (Entry.recipe) whose results stay, with the features that they use and the studies of their
                   federation
    other_formats  include results that this version of the gate cannot use

    Drafts older than ABANDONED are always included, so files that a running process is writing stay. Notes always stay.
    Raises ConfigurationError if a recipe in `keep` is not in the store.
    """
    listed = list(entries(place)) if older_than is not None or other_formats or keep else []
    if unknown := set(keep) - {entry.recipe for entry in listed}:
        raise ConfigurationError(
            f"--keep-recipe {min(unknown)}: the store {place.root} has no such recipe; `privacy-gate store list` "
            "lists all recipes"
        )
    # Features have the backbone as their recipe, so keeping a recipe keeps its backbone too.
    of_kept_recipes = [entry for entry in listed if entry.recipe in keep]
    kept = {*keep, *(entry.backbone for entry in of_kept_recipes)}
    studied = {entry.family for entry in of_kept_recipes} - {""}
    results = tuple(
        entry
        for entry in listed
        if not (entry.recipe in kept or (entry.kind in STUDIES and entry.family in studied))
        and ((older_than is not None and _older(entry.file, now, older_than)) or (other_formats and _foreign(entry)))
    )
    drafts = tuple(file for file in place.walk() if file.path.endswith(DRAFT) and _older(file, now, ABANDONED))
    return Waste(results, drafts)


def remove(place: Place, unneeded: Waste) -> None:
    """Deletes the files that `waste` returned."""
    for file in (*(entry.file for entry in unneeded.results), *unneeded.drafts):
        place.remove(file.path)


def verify(place: Place) -> Iterator[tuple[str, str | None]]:
    """Reads every result and note completely. Yields the path, and the fault or None.

    A result is valid if its content has the recorded digest and its name is the digest of the job inside. A note is
    valid if it is text.
    """
    for file in place.walk():
        check = fault if RESULT.fullmatch(file.path) else note_fault if NOTE.fullmatch(file.path) else None
        payload = place.read(file.path) if check else None
        if check and payload is not None:  # else a file of another program, or one that was just pruned
            yield file.path, check(payload, f"{place.root}/{file.path}")


def fault(payload: bytes, path: str) -> str | None:
    """The fault in a result's bytes, in words; None if they are valid."""
    try:
        label, _ = unpack(payload, path)
    except StoreError as error:
        return str(error)
    if not path.endswith(path_of(digest_of(label.job))):
        return f"store: {path} is damaged: it holds the result of another job"
    return None


def note_fault(payload: bytes, path: str) -> str | None:
    """The fault in a note's bytes, in words; None if they are valid."""
    try:
        read_note(payload, path)
    except StoreError as error:
        return str(error)
    return None


def age(text: str) -> datetime.timedelta:
    """A duration such as `30d` in hours (h), days (d) or weeks (w). Raises ConfigurationError for anything else.

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


def _older(file: StoredFile, now: datetime.datetime, limit: datetime.timedelta) -> bool:
    return file.modified is not None and now - file.modified > limit


def _foreign(entry: Entry) -> bool:
    """Whether it is a valid result of another version. Damaged results are reported by `verify`."""
    return entry.label is not None and not entry.current


def _without_seed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without its seed, which is in the candidate's result but not in its references' results."""
    return {name: value for name, value in recipe.items() if name != "seed"}


def _short(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
