"""Zip files as torch writes them: uncompressed records in one folder that neither overlap nor follow other data.

Zip readers disagree on unusual files (records that overlap, data before the archive or after its end), so another
reader could see other weights than the gate. Such files are refused.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privacy_gate.errors import CandidateError
from privacy_gate.weights.layout import MAX_BYTES, one_line

_HEADER = 30
"""Size in bytes of a record's local header, without its name and extra field."""

_END = b"PK\x05\x06" + bytes(18)
"""The end record of an empty archive without a comment. torch writes no comment, so every archive must end with a
record of this length."""


class Archive:
    """The records of a zip file, by name without the one folder that contains them all. Raises CandidateError."""

    def __init__(self, opened: zipfile.ZipFile) -> None:
        self._opened = opened
        self._records: dict[str, zipfile.ZipInfo] = {}
        folder = (opened.namelist() or [""])[0].partition("/")[0]
        for record in opened.infolist():
            _refuse_unlike_torch(record, folder)
            inner = record.filename.removeprefix(f"{folder}/")
            if inner in self._records:
                raise CandidateError(f"record {inner[:80]!r} occurs twice; save the model again with torch.save")
            self._records[inner] = record
        begins = sorted(record.header_offset for record in self._records.values())
        ends = sorted(record.header_offset + _HEADER + record.file_size for record in self._records.values())
        # Data before the first record or in two records at once: other readers may interpret it differently. `ends` is
        # a lower bound, since names and extra fields also take space.
        if begins[:1] not in ([], [0]) or any(
            end > begin for end, begin in zip(ends, [*begins[1:], opened.start_dir], strict=False)
        ):
            raise CandidateError("its records overlap or exceed the file; save the model again with torch.save")
        if "byteorder" in self and self.read("byteorder", limit=16) != b"little":
            raise CandidateError("its byte order is not little-endian: save it again on a little-endian machine")

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def read(self, name: str, limit: int = MAX_BYTES) -> bytearray:
        """The bytes of a record, copied only once. Raises CandidateError if it is missing or larger than the limit."""
        if name not in self._records:
            raise CandidateError(f"record {name[:80]!r} is missing; save the model again with torch.save")
        if self._records[name].file_size > limit:
            raise CandidateError(f"record {name[:80]!r} has more than {limit:,} bytes")
        content = bytearray()
        with self._opened.open(self._records[name]) as file:
            while chunk := file.read(1 << 20):
                content += chunk
        return content


def _refuse_unlike_torch(record: zipfile.ZipInfo, folder: str) -> None:
    """Raises CandidateError for a record that torch would not write."""
    name = record.filename
    if not folder.strip(".") or not name.startswith(f"{folder}/") or ".." in name.split("/") or "\\" in name:
        raise CandidateError(f"record {name[:80]!r} has a name that leads out of the archive's one folder")
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
        # Compression would allow zip bombs. TorchScript programs, which contain code, are compressed too.
        raise CandidateError(f"record {name[:80]!r} is compressed or encrypted: save the state dict with torch.save")
    if record.file_size != record.compress_size:
        raise CandidateError(f"record {name[:80]!r} has another size than its header claims; save the model again")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens the archive for the duration of the context. Raises CandidateError for an invalid archive."""
    try:
        with path.open("rb") as file:
            # The end record must be last: zipfile would search for it backwards, past appended data.
            file.seek(max(0, file.seek(0, io.SEEK_END) - len(_END)))
            if not file.read().startswith(_END[:4]):
                raise CandidateError("not a sound archive: it is truncated, or has data after its end")
            with zipfile.ZipFile(file) as opened:
                yield Archive(opened)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise CandidateError(f"not a sound archive: {one_line(error)}") from error
