"""Files under one root, a folder or any fsspec URL: written whole or not at all, every fault one StoreError."""

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
"""How the name of a file ends that is being written."""

START = 16 << 10
"""Bytes read of a file to learn what it is; nearly every header is shorter."""

_NO_PLACE = {errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"}
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Found:
    """A file by its path below the root; size in bytes; when it was written, where the file system says so."""

    path: str
    size: int
    modified: datetime.datetime | None


class Place:
    """A root and the files below it, whose paths are relative to it, with slashes.

    Every method raises StoreError (exit 6) where the root cannot be reached.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            with self._reaching("open"):
                # Other processes write here too: what a listing said is not remembered.
                self._files, base = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"store {root}: {error}; name a folder or an fsspec URL whose package is installed"
            ) from error
        self._base = PurePosixPath(base)
        self._protocols = {self._files.protocol} if isinstance(self._files.protocol, str) else {*self._files.protocol}

    def exists(self) -> bool:
        """Whether the root is there: a folder, or objects below a prefix."""
        with self._reaching("look into"):
            return bool(self._files.exists(str(self._base)))

    @property
    def near(self) -> bool:
        """Whether it is a folder of this machine: asking it takes microseconds, where a service takes milliseconds."""
        return isinstance(self._files, LocalFileSystem)

    def holds(self, path: str) -> bool:
        with self._reaching("look into"):
            return self._is_there(self._full(path))

    def read(self, path: str) -> bytes | None:
        """The file's bytes; None where there is none."""
        with self._reaching("read"):
            try:
                return bytes(self._files.cat_file(self._full(path)))
            except FileNotFoundError:
                return None

    def starts(self, paths: Sequence[str]) -> list[bytes | None]:
        """The first START bytes of every file: one request each, side by side where possible. None: not there."""
        full = [self._full(path) for path in paths]
        parts: list[bytes | None] = []
        with self._reaching("read"):
            for part in self._files.cat_ranges(full, [0] * len(full), [START] * len(full), on_error="return"):
                if isinstance(part, BaseException) and not isinstance(part, FileNotFoundError):
                    raise part
                parts.append(None if isinstance(part, FileNotFoundError) else bytes(part))
        return parts

    def write(self, path: str, payload: bytes) -> None:
        """Stores a file that appears whole or not at all. One that is there already is left as it is.

        Of two processes that write one at the same moment, the second may be the one that stays: on a service of S3's
        kind, or a file system, that cannot be asked to create and not to replace.
        """
        full = self._full(path)
        with self._reaching("write to"):
            if not self._is_there(full):
                self._write(full, payload, over=False)

    def replace(self, path: str, payload: bytes) -> None:
        """Stores a file in place of the one that is there: a killed run leaves the one or the other, whole."""
        with self._reaching("write to"):
            self._write(self._full(path), payload, over=True)

    def _write(self, full: str, payload: bytes, *, over: bool) -> None:
        if self._protocols & _OBJECT_STORES:
            self._put(full, payload, over=over)
            return
        self._files.makedirs(str(PurePosixPath(full).parent), exist_ok=True)
        draft = f"{full}.{uuid.uuid4().hex}{DRAFT}"
        if isinstance(self._files, LocalFileSystem):
            _create(Path(full), Path(draft), payload, over=over)
        else:
            self._move(draft, full, payload, over=over)

    def remove(self, path: str) -> None:
        """Deletes a file, or finds it deleted."""
        with self._reaching("delete from"), suppress(FileNotFoundError):
            self._files.rm_file(self._full(path))

    def walk(self) -> Iterator[Found]:
        """Every file, in the order of paths; none where the root does not exist yet."""
        with self._reaching("look into"):
            try:
                found: Mapping[str, Mapping[str, Any]] = self._files.find(str(self._base), detail=True)
            except FileNotFoundError:
                found = {}
        for path, facts in sorted(found.items()):
            inside = PurePosixPath(path).relative_to(self._base)
            yield Found(str(inside), int(facts.get("size") or 0), _modified(facts))

    def _full(self, path: str) -> str:
        return str(self._base / path)

    def _is_there(self, full: str) -> bool:
        """Not `isfile`, which says no where it should say that nobody answered: all would be computed again."""
        try:
            return bool(self._files.info(full)["type"] == "file")
        except FileNotFoundError:
            return False

    def _put(self, full: str, payload: bytes, *, over: bool) -> None:
        """An object appears whole or not at all; the service is asked not to replace one, where it can be asked."""
        known = inspect.signature(self._files.pipe_file).parameters
        create = {"mode": "create"} if "mode" in known else {"overwrite": False} if "overwrite" in known else {}
        if create and not over:
            try:
                self._files.pipe_file(full, payload, **create)
                return
            except OSError:  # it is there, or this service knows no such condition
                if self._is_there(full):
                    return
        self._files.pipe_file(full, payload)

    def _move(self, draft: str, full: str, payload: bytes, *, over: bool) -> None:
        """For file systems that know no better: write beside the target, then rename."""
        try:
            self._files.pipe_file(draft, payload)
            self._files.mv(draft, full)
        except BaseException:
            with suppress(OSError):
                self._files.rm_file(draft)
            if over or not self._is_there(full):  # else another process was first
                raise

    def _reaching(self, verb: str) -> "_Reaching":
        return _Reaching(f"store {self.root}: cannot {verb} it")


class _Reaching:
    """Says of any fault of a file system that the store cannot be reached.

    fsspec promises OSError, but its clients for object stores let errors of their own libraries through
    (botocore's for missing credentials, aiohttp's, Azure's), which share no base class. What counts is whose class it
    is: errors of Python itself other than OSError would be bugs, and the gate's own errors pass as they are.
    """

    def __init__(self, what: str) -> None:
        self._what = what

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
            remedy = f"make room (`privacy-gate store prune` says what can go), then {remedy}"
        elif isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno in _NO_PLACE):
            remedy = f"name a folder or bucket that can be written with --store, or mend its rights, then {remedy}"
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
        raise StoreError(f"{self._what}: {reason}; nothing stored is lost: {remedy}") from error


def _create(path: Path, draft: Path, payload: bytes, *, over: bool) -> None:
    """Writes a draft, flushes it to disk, gives it its name: a killed run leaves no half file under that name.

    over  in place of a file of that name
    """
    try:
        with draft.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if over:
            draft.replace(path)
            return
        try:
            path.hardlink_to(draft)  # unlike a rename, replaces nothing that another process stored meanwhile
        except FileExistsError:
            return
        except OSError:  # a file system without links
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _modified(facts: Mapping[str, Any]) -> datetime.datetime | None:
    """When a file was written, by whichever name its file system has for it."""
    said = next((facts[name] for name in _MODIFIED if facts.get(name) is not None), None)
    if isinstance(said, int | float):
        return datetime.datetime.fromtimestamp(said, datetime.UTC)
    if isinstance(said, str):
        try:
            said = datetime.datetime.fromisoformat(said)
        except ValueError:
            return None
    if not isinstance(said, datetime.datetime):
        return None
    return said if said.tzinfo else said.replace(tzinfo=datetime.UTC)
