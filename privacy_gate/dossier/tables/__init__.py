"""Audit tables as files, one reader per format. A format is added by its reader and a line here.

Only columns are read at once; the encoded image of a row is read when it is asked for. What was hashed is
what is read: a table stays open, and one that lies elsewhere is copied to an unnamed local file first.
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

    Raises DatasetError for what is no such table, or lacks a column.
    """
    return FORMATS[form](uri, file, list(dict.fromkeys(names)), image)
