"""Results of jobs, one immutable file each, named by the job's digest; a folder or any fsspec URL.

A file holds the arrays (safetensors), the job in words, and a sha256 over the arrays. It appears
whole or not at all, is never changed, and is checked on every read. Deleting the store loses time,
never a decision.
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from privacy_gate.errors import StoreError
from privacy_gate.job import Job, describe, digest

Arrays = Mapping[str, NDArray[Any]]

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl"}


class Store:
    """Results under one root.

    Raises StoreError (exit 6) where the root cannot be reached, is full, or holds a damaged file.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self._files, base = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(
                f"store {root}: {error}; name a folder or an fsspec URL whose package is installed"
            ) from error
        self._base = PurePosixPath(base)

    def has(self, job: Job) -> bool:
        """Whether the job's result is stored. It is checked when read, not here."""
        try:
            return bool(self._files.isfile(self._path(job)))
        except OSError as error:
            raise self._unreachable("look into", error) from error

    def get(self, job: Job) -> dict[str, NDArray[Any]]:
        """The job's arrays. A missing or damaged file is a StoreError that names it."""
        path = self._path(job)
        try:
            payload = self._files.cat_file(path)
        except FileNotFoundError as error:
            raise StoreError(f"store {self.root}: no result of {describe(job)['kind']}: run `prepare` first") from error
        except OSError as error:
            raise self._unreachable("read", error) from error
        return _unpack(payload, job, path)

    def put(self, job: Job, arrays: Arrays) -> None:
        """Stores the job's arrays, atomically. A result that is there already is left as it is."""
        path = self._path(job)
        try:
            if self._files.isfile(path):
                return
            self._files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            payload = _pack(job, arrays)
            self._write(path, payload)
        except OSError as error:
            raise self._unreachable("write to", error) from error

    def remember(self, name: str, text: str) -> str:
        """Keeps `text` under `name` if nothing is kept there yet; returns what is kept."""
        path = str(self._base / "notes" / hashlib.sha256(name.encode()).hexdigest())
        try:
            if not self._files.isfile(path):
                self._files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
                self._write(path, text.encode())
            return bytes(self._files.cat_file(path)).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"store {self.root}: cannot keep a note in it: {error}; run again") from error

    def _write(self, path: str, payload: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            _replace(Path(path), payload)
        elif _OBJECT_STORES & {*np.atleast_1d(self._files.protocol)}:
            self._files.pipe_file(path, payload)  # an object appears whole or not at all
        else:
            draft = f"{path}.{uuid.uuid4().hex}.part"
            self._files.pipe_file(draft, payload)
            self._files.mv(draft, path)

    def _path(self, job: Job) -> str:
        name = digest(job)
        return str(self._base / name[:2] / f"{name}.safetensors")

    def _unreachable(self, verb: str, error: OSError) -> StoreError:
        return StoreError(f"store {self.root}: cannot {verb} it: {error}; nothing stored is lost, run again")


def _pack(job: Job, arrays: Arrays) -> bytes:
    plain = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    header = {"job": json.dumps(describe(job), sort_keys=True), "sha256": _checksum(plain)}
    return save(plain, metadata=header)


def _unpack(payload: bytes, job: Job, path: str) -> dict[str, NDArray[Any]]:
    try:
        arrays: dict[str, NDArray[Any]] = load(payload)
        size = int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8 : 8 + size])["__metadata__"]
        sound = header["sha256"] == _checksum(arrays) and json.loads(header["job"]) == json.loads(
            json.dumps(describe(job))
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"store: {path} is damaged: {error}; delete it and run `prepare` again") from error
    if not sound:
        raise StoreError(f"store: {path} is damaged: its checksum differs; delete it and run `prepare` again")
    return arrays


def _checksum(arrays: Arrays) -> str:
    """sha256 over every array's name, type, shape and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _replace(path: Path, payload: bytes) -> None:
    """Writes beside the target, flushes to disk, renames: a killed run leaves no half file."""
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
