"""Zips as torch writes them: records stored plainly in one folder, none over another, nothing before or between."""

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privacy_gate.errors import CandidateError
from privacy_gate.weights.layout import MAX_BYTES, one_line

_HEADER = 30
"""Bytes before each record, at least."""

_END = b"PK\x05\x06" + bytes(18)
"""The last bytes of an archive that has no records and no comment; torch writes no comments."""


class Archive:
    """The records of a zip by their names without the one folder that all are in. Raises CandidateError."""

    def __init__(self, opened: zipfile.ZipFile) -> None:
        self._opened = opened
        self._records: dict[str, zipfile.ZipInfo] = {}
        folder = (opened.namelist() or [""])[0].partition("/")[0]
        for record in opened.infolist():
            _refuse_unlike_torch(record, folder)
            inner = record.filename.removeprefix(f"{folder}/")
            if inner in self._records:
                raise CandidateError(f"record {inner[:80]!r} stands twice")
            self._records[inner] = record
        begins = sorted(record.header_offset for record in self._records.values())
        ends = sorted(record.header_offset + _HEADER + record.file_size for record in self._records.values())
        # What stands before the first record, or in two at once, another reader may read otherwise.
        if begins[:1] not in ([], [0]) or any(
            end > begin for end, begin in zip(ends, [*begins[1:], opened.start_dir], strict=False)
        ):
            raise CandidateError("its records overlap, or claim more bytes than the file has")
        if "byteorder" in self and self.read("byteorder", limit=16) != b"little":
            raise CandidateError("its byte order is not little-endian: save it again on such a machine")

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def read(self, name: str, limit: int = MAX_BYTES) -> bytearray:
        """The bytes of a record, of which no second copy is held."""
        if name not in self._records:
            raise CandidateError(f"record {name[:80]!r} is missing")
        if self._records[name].file_size > limit:
            raise CandidateError(f"record {name[:80]!r} has more than {limit:,} bytes")
        content = bytearray()
        with self._opened.open(self._records[name]) as file:
            while chunk := file.read(1 << 20):
                content += chunk
        return content


def _refuse_unlike_torch(record: zipfile.ZipInfo, folder: str) -> None:
    name = record.filename
    if not folder.strip(".") or not name.startswith(f"{folder}/") or ".." in name.split("/") or "\\" in name:
        raise CandidateError(f"record {name[:80]!r} has a name that leads out of the archive's one folder")
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
        # Zip bombs are compressed, and so is the code in TorchScript programs.
        raise CandidateError(f"record {name[:80]!r} is compressed or encrypted: save the state dict with torch.save")
    if record.file_size != record.compress_size:
        raise CandidateError(f"record {name[:80]!r} claims other bytes than it has")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive, while it is open. Raises CandidateError for bytes that are none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - len(_END)))
            if not file.read().startswith(_END[:4]):
                raise CandidateError("not a sound archive: it is cut off, or goes on after its end")
            with zipfile.ZipFile(file) as opened:
                yield Archive(opened)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise CandidateError(f"not a sound archive: {one_line(error)}") from error
