"""Audit tables as files, with one reader per format. To add a format, write its reader and list it in FORMATS.

Columns are read at once; the encoded image of a row is read later, on request. The bytes that are read are the bytes
that were hashed: a local table stays open, and a remote table is first copied to an unnamed local file.
"""

from collections.abc import Callable, Iterable
from typing import IO

from privacy_gate.dossier.tables.npz import read_npz
from privacy_gate.dossier.tables.parquet import read_parquet
from privacy_gate.dossier.tables.raw import RawTable
from privacy_gate.dossier.tables.text import read_csv

FORMATS: dict[str, Callable[[str, IO[bytes], list[str], str | None], RawTable]] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "npz": read_npz,
}


def open_table(uri: str, form: str, file: IO[bytes], names: Iterable[str], image: str | None) -> RawTable:
    """The named columns of the table in `file`, and a reader for its image column.

    Raises DatasetError if the file is not a table in this format, or if a column is missing.
    """
    return FORMATS[form](uri, file, list(dict.fromkeys(names)), image)
