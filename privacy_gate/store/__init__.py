"""Results of jobs, one immutable file each, named by the job's digest; a folder or any fsspec URL.

A file appears whole or not at all, is never changed, and is checked on every read. Its name says what was computed, not
with which version of torch or on which device: those stand inside, as facts. Deleting the store loses time,
never a decision.
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
"""Questions to a distant store under way at once."""


class Store:
    """Results under one root, and which numerics make those that are put here.

    Raises StoreError (exit 6) where the root cannot be reached, is full, or holds a damaged file.
    """

    def __init__(self, root: str, made: Mapping[str, str] | None = None) -> None:
        self.root, self.place, self._made = root, Place(root), dict(made or {})

    def made_by(self, numerics: Mapping[str, str]) -> "Store":
        """The same store; what is put into it says that these numerics made it."""
        return Store(self.root, numerics)

    def has(self, job: Job) -> bool:
        """Whether the job's result is stored. It is checked when read, not here."""
        return self.place.holds(path_of(digest(job)))

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of the jobs whose results are not stored, in their order; a distant store is asked ASKED at a time.

        No listing: it would say of a folder that cannot be read that it is empty, and is long where others store too.
        """
        asked = list(jobs)
        if self.place.near:
            return [job for job in asked if not self.has(job)]
        with ThreadPoolExecutor(ASKED) as pool:
            return [job for job, there in zip(asked, pool.map(self.has, asked), strict=True) if not there]

    def get(self, job: Job) -> dict[str, NDArray[Any]]:
        """The job's arrays. A damaged file is a StoreError that names it, a missing one an UndecidedError (exit 4)."""
        path = path_of(digest(job))
        payload = self.place.read(path)
        if payload is None:
            raise UndecidedError(f"store {self.root}: no result of {describe(job)['kind']}: run `prepare` first")
        label, arrays = unpack(payload, f"{self.root}/{path}")
        if digest_of(label.job) != digest(job):
            raise damaged(f"{self.root}/{path}", "it holds the result of another job")
        return arrays

    def put(self, job: Job, arrays: Arrays) -> None:
        """Stores the job's arrays, atomically. A result that is there already is left as it is."""
        self.place.write(path_of(digest(job)), pack(job, arrays, self._made))

    def remember(self, name: str, text: str) -> str:
        """Keeps `text`, which is not empty, under `name` if nothing is kept there yet; returns what is kept."""
        self.place.write(_note_path(name), text.encode())
        kept = self.recall(name)
        return text if kept is None else kept

    def recall(self, name: str) -> str | None:
        """What is kept under `name`; None where nothing is."""
        path = _note_path(name)
        kept = self.place.read(path)
        return None if kept is None else read_note(kept, f"{self.root}/{path}")


def _note_path(name: str) -> str:
    return f"notes/{hashlib.sha256(name.encode()).hexdigest()}"


def path_of(name: str) -> str:
    """Where the result with this digest lies, below the root."""
    return f"{name[:2]}/{name}.safetensors"
