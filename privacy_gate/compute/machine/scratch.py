"""Temporary folders and files; a full disk becomes one clear error."""

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
"""Error numbers that mean that a disk accepts no more bytes."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that only its owner may access; deleted afterwards.

    Raises UnavailableError (exit 6) if it cannot be created, or if the disk fills up inside the context.
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
    """An unnamed file of `size` zero bytes, all reserved on the disk.

    Without the reservation, a later write through a memory map would kill the process if the disk were full. Raises
    UnavailableError (exit 6) if the disk has no room.
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
    # macOS and some file systems cannot reserve space: this check does not protect against later writes by others.
    if shutil.disk_usage(tempfile.gettempdir()).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)


def _no_room(error: OSError) -> UnavailableError:
    return UnavailableError(
        f"temporary files: {error}; stored results are kept: make room on that disk, or set TMPDIR to a folder on a "
        "larger disk, and run the same command to go on"
    )
