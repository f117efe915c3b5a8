"""Places that are full, unreachable, or shared by several processes. A file is never partly written."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from privacy_gate.errors import StoreError
from privacy_gate.store.place import DRAFT, Place


class ForeignError(Exception):
    """An error of a client's own library that is not an OSError, such as botocore's NoCredentialsError."""


class Faulty(MemoryFileSystem):  # type: ignore[misc]
    """A file system in memory, with faults that depend on words in the path."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("faulty:/")))

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        if "full" in path:
            super().pipe_file(path, value[:3], **kwargs)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pipe_file(path, value, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        if "foreign" in path:
            raise ForeignError("no credentials")
        if "bug" in path:
            raise TypeError("a bug")
        return super().info(path, **kwargs)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if "raced" in path2:  # another process stored it first, and this file system does not replace files
            super().pipe_file(path2, b"first")
            raise FileExistsError(path2)
        super().mv(path1, path2, **kwargs)


class Objects(MemoryFileSystem):  # type: ignore[misc]
    """An object store in memory, in which another process is first to write below `raced`.

    Below `plain` it refuses conditional writes, as some S3-compatible services do.
    """

    protocol = ("objects", "s3")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("objects:/")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if "raced" in path and path not in self.store:
            super().pipe_file(path, b"first")
        if "plain" in path and mode == "create":
            raise OSError(errno.EIO, "A header you provided implies functionality that is not implemented")
        super().pipe_file(path, value, mode=mode, **kwargs)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for kind in (Faulty, Objects):
        fsspec.register_implementation(kind.__name__.lower(), kind, clobber=True)
        kind.store.clear()
    yield
    Faulty.store.clear()
    Objects.store.clear()


def test_a_full_disk_is_one_clear_error_that_loses_nothing_and_leaves_no_draft() -> None:
    place = Place("faulty://shelf")
    place.write("a/kept", b"kept")
    with pytest.raises(StoreError, match=r"No space left.*nothing stored is lost: make room \(`privacy-gate store pr"):
        place.write("a/full", b"lost")
    assert [found.path for found in place.walk()] == ["a/kept"]
    assert place.read("a/kept") == b"kept"


def test_a_file_is_replaced_whole_or_stays_and_leaves_no_draft(tmp_path: Path) -> None:
    for place in (Place(str(tmp_path)), Place("faulty://shelf")):
        place.write("a/note", b"late")
        place.replace("a/note", b"early")
        assert place.read("a/note") == b"early"
    MemoryFileSystem.pipe_file(Faulty(), "/shelf/a/full", b"kept")
    with pytest.raises(StoreError, match="No space left"):
        Place("faulty://shelf").replace("a/full", b"lost")
    assert Place("faulty://shelf").read("a/full") == b"kept"
    for place in (Place(str(tmp_path)), Place("faulty://shelf")):
        assert not [found for found in place.walk() if found.path.endswith(DRAFT)]


LIMITED = """
import resource, sys
from privacy_gate.errors import StoreError
from privacy_gate.store.place import Place
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
place = Place(sys.argv[1])
place.write("a/small", b"x" * 9_000)
try:
    place.write("a/large", b"x" * 20_000)
except StoreError as error:
    print(error.exit_code, error)
"""


def test_a_folder_that_takes_no_more_bytes_keeps_what_it_has_and_no_draft(tmp_path: Path) -> None:
    run = [sys.executable, "-c", LIMITED, str(tmp_path / "store")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("6 store ")
    assert "make room" in done.stdout
    assert [found.path for found in Place(str(tmp_path / "store")).walk()] == ["a/small"]


def test_errors_of_a_client_s_own_library_say_that_the_store_cannot_be_reached() -> None:
    with pytest.raises(StoreError, match="cannot look into it: ForeignError: no credentials; nothing stored is lost"):
        Place("faulty://foreign").holds("x")


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(TypeError, match="a bug"):
        Place("faulty://bug").holds("x")


def test_who_comes_second_leaves_the_first_file_and_no_draft() -> None:
    place = Place("faulty://shelf")
    place.write("a/raced", b"second")
    assert place.read("a/raced") == b"first"
    assert len(list(place.walk())) == 1


def test_who_comes_second_leaves_the_first_object_where_the_service_can_be_asked_to() -> None:
    place = Place("objects://shelf")
    place.write("a/raced", b"second")
    assert place.read("a/raced") == b"first"
    place.replace("a/raced", b"third")
    assert place.read("a/raced") == b"third"


def test_a_service_that_cannot_be_asked_to_create_alone_stores_all_the_same() -> None:
    place = Place("objects://shelf")
    place.write("a/plain", b"kept")
    assert place.read("a/plain") == b"kept"
    place.write("a/plain", b"second")
    assert place.read("a/plain") == b"kept"


def test_a_refused_connection_is_a_store_error() -> None:
    with pytest.raises(StoreError, match=r"cannot open it: .*refused") as caught:
        Place("ftp://127.0.0.1:1/store")
    assert caught.value.exit_code == 6


WRITER = """
import sys
from privacy_gate.store.place import Place
place = Place(sys.argv[1])
sys.stdin.readline()
for number in range(200):
    place.write(f"a/{number}", sys.argv[2].encode() * 30_000)
    found = place.read(f"a/{number}")
    assert len(found) == 30_000 and len(set(found)) == 1, number
"""


def test_processes_that_store_the_same_job_at_once_leave_one_whole_file_and_the_first_stays(tmp_path: Path) -> None:
    run = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*run, name], stdin=subprocess.PIPE, text=True) for name in "ab"]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    files = list(Place(str(tmp_path)).walk())
    assert len(files) == 200
    assert {found.size for found in files} == {30_000}


def test_a_stored_file_is_readable_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Place(str(tmp_path)).write("a/b", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o640
