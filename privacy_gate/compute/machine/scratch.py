"""Temporary folders and files; a disk that has no room for them is one clear error."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from privacy_gate.errors import UnavailableError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a disk says that takes no more bytes."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that only its owner may enter, gone afterwards.

    Raises UnavailableError (exit 6) where there can be none, or where the disk fills up in the meantime.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix="privacy-gate-")
    except OSError as error:
        raise _no_room(error) from error
    with temporary as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _no_room(error) from error


@contextmanager
def scratch_file(size: int) -> Iterator[IO[bytes]]:
    """A file of so many zeros, without a name. Every byte has its place on the disk: one that is mapped into memory
    and written later would end the process where the disk turned out to be full.

    Raises UnavailableError (exit 6) where the disk has no room.
    """
    try:
        file = tempfile.TemporaryFile(prefix="privacy-gate-")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_room(error) from error
    with file:
        try:
            _reserve(file, size)
        except OSError as error:
            raise _no_room(error) from error
        yield file


def _reserve(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
    # macOS and some file systems cannot reserve: what others write meanwhile is not foreseen.
    if shutil.disk_usage(tempfile.gettempdir()).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)


def _no_room(error: OSError) -> UnavailableError:
    return UnavailableError(
        f"temporary files: {error}; what is stored stays: make room there, or set TMPDIR to a folder on a larger disk, "
        "and run the same command to go on"
    )
