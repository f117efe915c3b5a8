"""Audit tables as CSV, with image files in the same folder."""

from typing import IO

from privacy_gate.dossier.tables.files import Files
from privacy_gate.dossier.tables.raw import RawTable, column, refuse_missing
from privacy_gate.errors import DatasetError


def read_csv(uri: str, file: IO[bytes], wanted: list[str], image: str | None) -> RawTable:
    """Reads the wanted columns as text, so that an id 007 stays 007. Only an empty cell is a missing value.

    Raises DatasetError.
    """
    import pyarrow as pa  # noqa: PLC0415 - commands that read no table start without it
    from pyarrow import csv  # noqa: PLC0415

    names = [*wanted, *([image] if image else [])]
    # Without null_values=[""], pyarrow would also read "NA" and "nan" as missing.
    as_text = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    try:
        table = csv.read_csv(file, convert_options=as_text)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: not a sound csv file: {error}") from error
    refuse_missing(uri, names, table.column_names)
    columns = {name: column(uri, name, table.column(name)) for name in names}
    if image is None:
        return RawTable(columns)
    files = Files(uri, image, columns.pop(image).tolist())
    return RawTable(columns, files.read, files.digest)
