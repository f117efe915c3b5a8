"""Results of jobs in a folder or at any fsspec URL, one immutable file per job, named by the job's digest.

A file is written whole or not at all, is never changed, and is checked on every read. Its name depends only on what was
computed. The torch version and the device are recorded inside the file and do not change the name. A deleted store
loses no decision: its results can be computed again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.errors import UndecidedError
from privacy_gate.jobs.digests import describe, digest, digest_of
from privacy_gate.jobs.kinds import Job
from privacy_gate.store.contents import damaged, pack, read_note, unpack
from privacy_gate.store.place import Place

ASKED = 16
"""Simultaneous requests to a remote store."""


class Store:
    """The results under one root.

    made  numerics that are recorded with every result stored from here: see contents.Label
    Every method raises StoreError (exit 6) if the root cannot be reached or is full, or if a file is damaged.
    """

    def __init__(self, root: str, made: Mapping[str, str] | None = None) -> None:
        self.root, self.place, self._made = root, Place(root), dict(made or {})

    def made_by(self, numerics: Mapping[str, str]) -> "Store":
        """The same store, which records these numerics with every result that is put into it."""
        return Store(self.root, numerics)

    def has(self, job: Job) -> bool:
        """Whether the job's result is stored. Its content is checked only when it is read."""
        return self.place.holds(path_of(digest(job)))

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs whose results are not stored, in the given order. A remote store gets ASKED requests at a time."""
        candidates = list(jobs)
        # One request per job instead of a listing: a listing reports an unreadable folder as empty, and is slow in a
        # store that others share.
        if self.place.near:
            return [job for job in candidates if not self.has(job)]
        with ThreadPoolExecutor(ASKED) as pool:
            return [job for job, stored in zip(candidates, pool.map(self.has, candidates), strict=True) if not stored]

    def get(self, job: Job) -> dict[str, NDArray[Any]]:
        """The job's arrays. Raises UndecidedError (exit 4) if they are missing, StoreError if the file is damaged."""
        path = path_of(digest(job))
        payload = self.place.read(path)
        if payload is None:
            raise UndecidedError(f"store {self.root}: no result of {describe(job)['kind']}: run `prepare` first")
        label, arrays = unpack(payload, f"{self.root}/{path}")
        # A file copied to another name is intact in itself, but would answer for another job.
        if digest_of(label.job) != digest(job):
            raise damaged(f"{self.root}/{path}", "it holds the result of another job")
        return arrays

    def put(self, job: Job, arrays: Arrays) -> None:
        """Stores the job's arrays atomically. An existing result is not replaced."""
        self.place.write(path_of(digest(job)), pack(job, arrays, self._made))

    def remember(self, name: str, text: str) -> str:
        """Stores a note, a non-empty text, unless `name` already has one. Returns the note that is stored."""
        self.place.write(_note_path(name), text.encode())
        # Read back, because another process may have stored its own text first.
        stored = self.recall(name)
        return text if stored is None else stored

    def recall(self, name: str) -> str | None:
        """The note under `name`; None if there is none."""
        path = _note_path(name)
        payload = self.place.read(path)
        return None if payload is None else read_note(payload, f"{self.root}/{path}")


def _note_path(name: str) -> str:
    return f"notes/{hashlib.sha256(name.encode()).hexdigest()}"


def path_of(name: str) -> str:
    """The path of the result with this digest, below the root."""
    return f"{name[:2]}/{name}.safetensors"
