"""Files under one root, which is a folder or any fsspec URL.

A file is written whole or not at all, and every fault of the file system becomes a StoreError.
"""

import datetime
import errno
import inspect
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from privacy_gate.errors import StoreError

DRAFT = ".part"
"""Ending of the name of a file that is being written."""

START = 16 << 10
"""Bytes read from a file's start to get its label. Nearly every header is shorter."""

# Errors that mean: this root cannot be written.
_NO_PLACE = {errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
# Protocols whose objects appear whole or not at all, so that no draft is needed.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"}
# Names that fsspec file systems give to the time of writing.
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class StoredFile:
    """A file below the root.

    path      relative to the root, with slashes
    size      bytes
    modified  time of writing; None if the file system does not report it
    """

    path: str
    size: int
    modified: datetime.datetime | None


class Place:
    """A root and the files below it. Paths are relative to the root and have slashes.

    Every method raises StoreError (exit 6) if the root cannot be reached.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            with self._reaching("open"):
                # Other processes write here too, so a listing must not be cached.
                self._files, base = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"store {root}: {error}; name a folder or an fsspec URL whose package is installed"
            ) from error
        self._base = PurePosixPath(base)
        self._protocols = {self._files.protocol} if isinstance(self._files.protocol, str) else {*self._files.protocol}

    def exists(self) -> bool:
        """Whether the root exists, as a folder or as a prefix of objects."""
        with self._reaching("look into"):
            return bool(self._files.exists(str(self._base)))

    @property
    def near(self) -> bool:
        """Whether the root is a local folder, where a request takes microseconds instead of milliseconds."""
        return isinstance(self._files, LocalFileSystem)

    def holds(self, path: str) -> bool:
        with self._reaching("look into"):
            return self._is_there(self._full(path))

    def read(self, path: str) -> bytes | None:
        """The file's bytes; None if it does not exist."""
        with self._reaching("read"):
            try:
                return bytes(self._files.cat_file(self._full(path)))
            except FileNotFoundError:
                return None

    def starts(self, paths: Sequence[str]) -> list[bytes | None]:
        """The first START bytes of each file; None if it does not exist. Requests run in parallel if possible."""
        full = [self._full(path) for path in paths]
        parts: list[bytes | None] = []
        with self._reaching("read"):
            for part in self._files.cat_ranges(full, [0] * len(full), [START] * len(full), on_error="return"):
                if isinstance(part, BaseException) and not isinstance(part, FileNotFoundError):
                    raise part
                parts.append(None if isinstance(part, FileNotFoundError) else bytes(part))
        return parts

    def write(self, path: str, payload: bytes) -> None:
        """Stores a file whole or not at all. An existing file is not replaced.

        Race: if two processes write the same file at the same moment, the second may replace the first, if the service
        or file system has no operation that creates a file only if it does not exist.
        """
        full = self._full(path)
        with self._reaching("write to"):
            if not self._is_there(full):
                self._write(full, payload, replace=False)

    def replace(self, path: str, payload: bytes) -> None:
        """Replaces a file. If the process is killed, the old or the new file remains, whole."""
        with self._reaching("write to"):
            self._write(self._full(path), payload, replace=True)

    def _write(self, full: str, payload: bytes, *, replace: bool) -> None:
        if self._protocols & _OBJECT_STORES:
            self._put(full, payload, replace=replace)
            return
        self._files.makedirs(str(PurePosixPath(full).parent), exist_ok=True)
        # A random name, because several processes may write the same file at once.
        draft = f"{full}.{uuid.uuid4().hex}{DRAFT}"
        if isinstance(self._files, LocalFileSystem):
            _create(Path(full), Path(draft), payload, replace=replace)
        else:
            self._move(draft, full, payload, replace=replace)

    def remove(self, path: str) -> None:
        """Deletes a file if it exists."""
        with self._reaching("delete from"), suppress(FileNotFoundError):
            self._files.rm_file(self._full(path))

    def walk(self) -> Iterator[StoredFile]:
        """Every file, sorted by path; no files if the root does not exist yet."""
        with self._reaching("look into"):
            try:
                listing: Mapping[str, Mapping[str, Any]] = self._files.find(str(self._base), detail=True)
            except FileNotFoundError:
                listing = {}
        for path, facts in sorted(listing.items()):
            inside = PurePosixPath(path).relative_to(self._base)
            yield StoredFile(str(inside), int(facts.get("size") or 0), _modified(facts))

    def _full(self, path: str) -> str:
        return str(self._base / path)

    def _is_there(self, full: str) -> bool:
        """Whether the file exists. Raises the file system's error if it cannot answer."""
        # Not `isfile`: it returns False for any error, and every result would be computed again.
        try:
            return bool(self._files.info(full)["type"] == "file")
        except FileNotFoundError:
            return False

    def _put(self, full: str, payload: bytes, *, replace: bool) -> None:
        """Writes an object, which appears whole or not at all."""
        # The clients have different parameters for "create only if it does not exist", or none.
        known = inspect.signature(self._files.pipe_file).parameters
        create = {"mode": "create"} if "mode" in known else {"overwrite": False} if "overwrite" in known else {}
        if create and not replace:
            try:
                self._files.pipe_file(full, payload, **create)
                return
            except OSError:  # it exists, or the service does not support the condition
                if self._is_there(full):
                    return
        # Unconditional: the race that `write` documents.
        self._files.pipe_file(full, payload)

    def _move(self, draft: str, full: str, payload: bytes, *, replace: bool) -> None:
        """Writes a draft next to the target and renames it, for file systems without a better operation."""
        try:
            self._files.pipe_file(draft, payload)
            self._files.mv(draft, full)
        except BaseException:
            with suppress(OSError):
                self._files.rm_file(draft)
            if replace or not self._is_there(full):  # else another process stored the same file first
                raise

    def _reaching(self, verb: str) -> "_Reaching":
        return _Reaching(f"store {self.root}: cannot {verb} it")


class _Reaching:
    """Turns any fault of a file system into a StoreError.

    fsspec documents OSError, but its clients for object stores also raise errors of their own libraries (botocore for
    missing credentials, aiohttp, Azure), which share no base class. So the module of the error's class decides: an
    error from Python itself, except OSError, is a bug and passes, and so do the gate's own errors.
    """

    def __init__(self, failure: str) -> None:
        self._failure = failure

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        owner = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and owner in {"builtins", "privacy_gate"}:
            return
        remedy = "run the same command again"
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            remedy = f"make room (`privacy-gate store prune` lists what can be deleted), then {remedy}"
        elif isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno in _NO_PLACE):
            remedy = f"name a folder or bucket that can be written with --store, or fix its permissions, then {remedy}"
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
        raise StoreError(f"{self._failure}: {reason}; nothing stored is lost: {remedy}") from error


def _create(path: Path, draft: Path, payload: bytes, *, replace: bool) -> None:
    """Writes a draft, flushes it to disk, and gives it its name, so that a killed process leaves no partial file.

    replace  whether to replace an existing file with that name
    """
    try:
        with draft.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())  # else a crash could leave an empty file under the final name
        if replace:
            draft.replace(path)
            return
        try:
            path.hardlink_to(draft)  # unlike a rename, never replaces a file that another process stored
        except FileExistsError:
            return
        except OSError:  # the file system has no hard links
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _modified(facts: Mapping[str, Any]) -> datetime.datetime | None:
    """The time of writing, under the name that the file system uses; None if it is missing or not a time."""
    written = next((facts[name] for name in _MODIFIED if facts.get(name) is not None), None)
    if isinstance(written, int | float):
        return datetime.datetime.fromtimestamp(written, datetime.UTC)
    if isinstance(written, str):
        try:
            written = datetime.datetime.fromisoformat(written)
        except ValueError:
            return None
    if not isinstance(written, datetime.datetime):
        return None
    return written if written.tzinfo else written.replace(tzinfo=datetime.UTC)
