"""Reads bytes from a path or fsspec URL, and reads the image files that a table's rows name."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from privacy_gate.errors import DatasetError, UnavailableError

CHUNK = 1 << 20
"""Bytes read at a time."""


PROTOCOLS = {"file", "local", "memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hdfs", "https"}
"""Protocols that a URI in a dossier may use.

Dossiers come from strangers. Their URIs must not open fsspec's chained file systems (`zip::...`), and must not reach
servers inside the gate's network over plain http.
"""


def _refuse_foreign(uri: str) -> None:
    protocol, separator, _ = uri.partition("://")
    if "::" in uri or (separator and protocol.lower() not in PROTOCOLS):
        known = ", ".join(sorted(PROTOCOLS))
        raise DatasetError(f"{uri}: a URI in a dossier may not use this protocol; use a path or one of {known}")


@contextmanager
def _reaching(uri: str, named_by: str = "the dossier") -> Iterator[None]:
    """Refuses foreign protocols, and translates errors: DatasetError for a missing file, else UnavailableError."""
    _refuse_foreign(uri)
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{uri}: no such file; correct the path in {named_by}") from error
    except (OSError, ImportError, ValueError) as error:
        raise UnavailableError(f"{uri}: cannot be read: {error}; check network and credentials, then retry") from error


def read_bytes(uri: str, named_by: str = "the dossier") -> bytes:
    """The file's bytes. named_by: the source of the URI, for error messages.

    Raises UnavailableError if the file cannot be reached, DatasetError if it does not exist.
    """
    import fsspec  # noqa: PLC0415 - commands that read no table start without it

    with _reaching(uri, named_by), fsspec.open(uri, "rb") as file:
        return bytes(file.read())


def open_file(uri: str) -> tuple[IO[bytes], str]:
    """The file, open at its start, and the sha256 of its bytes. Raises as `read_bytes` does."""
    import fsspec  # noqa: PLC0415

    total = hashlib.sha256()
    with _reaching(uri):
        if path := _local(uri):
            file: IO[bytes] = path.open("rb")
            while block := file.read(CHUNK):
                total.update(block)
        else:
            # A remote file could change between two reads, so rows are read from the copy that was hashed.
            file = tempfile.TemporaryFile()  # noqa: SIM115 - stays open while rows are read
            with fsspec.open(uri, "rb") as source:
                while block := source.read(CHUNK):
                    total.update(block)
                    file.write(block)
        file.seek(0)
    return file, total.hexdigest()


def _local(uri: str) -> Path | None:
    """The path of a local file; None if the file is remote."""
    from fsspec.core import url_to_fs  # noqa: PLC0415
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415

    files, path = url_to_fs(uri)
    return Path(path) if isinstance(files, LocalFileSystem) else None


class Files:
    """The image files that rows name, in or below the table's folder. Their digests are pinned at construction.

    digest  sha256 over one JSON line [path, size, sha256] per file, sorted by path
    """

    def __init__(self, table_uri: str, column: str, paths: Sequence[str]) -> None:
        folder, slash, _ = table_uri.rpartition("/")
        self._folder, self._column, self._paths = folder + slash, column, paths
        local = _local(table_uri)
        self._root = local.parent.resolve() if local else None
        self._pinned: dict[str, str] = {}
        total = hashlib.sha256()
        for path in sorted(set(paths)):
            content = self._content(path)
            self._pinned[path] = hashlib.sha256(content).hexdigest()
            total.update(json.dumps([path, len(content), self._pinned[path]]).encode() + b"\n")
        self.digest = total.hexdigest()

    def read(self, row: int) -> bytes:
        """The bytes of a row's file. Raises DatasetError if the file changed since construction."""
        path = self._paths[row]
        content = self._content(path)
        if hashlib.sha256(content).hexdigest() != self._pinned[path]:
            raise DatasetError(f"{self._folder}{path}: the file changed during the audit; start again")
        return content

    def _content(self, path: str) -> bytes:
        """The file's bytes. Raises DatasetError for a path that leads out of the table's folder."""
        # Backslashes and drive letters are refused too: on Windows they lead out of the folder.
        parts = PurePosixPath(path.replace("\\", "/")).parts
        outside = not parts or path.startswith(("/", "\\")) or ".." in parts or "://" in path or ":" in parts[0]
        # A symbolic link inside the folder may still lead out of it.
        if outside or (self._root and not (self._root / path).resolve().is_relative_to(self._root)):
            raise DatasetError(
                f"{self._folder}: column '{self._column}' names {path!r}, expected a path inside the table's folder"
            )
        return read_bytes(self._folder + path, f"the table's column '{self._column}'")
