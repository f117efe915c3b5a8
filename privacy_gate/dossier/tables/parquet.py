"""Audit tables as Parquet. Images are read in batches, so tables with gigabytes of images need little memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import IO, Any

import numpy as np

from privacy_gate.dossier.tables.files import CHUNK, Files
from privacy_gate.dossier.tables.raw import RawTable, column, refuse_missing
from privacy_gate.errors import DatasetError

BATCH = 32
"""Images read in one batch."""

GAP = 2048
"""Rows that may be read ahead of a requested row. Threads request rows almost in order, so another thread is about to
ask for them."""

KEPT = 512 << 20
"""Most bytes of images kept until every thread has read its rows."""

ENCODED = ("binary", "large_binary", "binary_view")
PATHS = ("string", "large_string", "string_view")


def read_parquet(uri: str, file: IO[bytes], wanted: list[str], image: str | None) -> RawTable:
    """Reads the wanted columns. Raises DatasetError.

    Images are encoded bytes, paths relative to the table's folder, or the Hugging Face struct of `bytes` and `path`.
    """
    import pyarrow as pa  # noqa: PLC0415 - commands that read no table start without it
    from pyarrow import parquet  # noqa: PLC0415

    try:
        # pre_buffer would fetch whole row groups ahead, and one row group may hold the whole table.
        source = parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
        refuse_missing(uri, [*wanted, *([image] if image else [])], source.schema_arrow.names)
        table = source.read(columns=wanted)
        columns = {name: column(uri, name, table.column(name)) for name in wanted}
        if image is None:
            return RawTable(columns)
        leaf, kind = _leaf(source, image)
        if kind in ENCODED:
            if empty := _nulls(source.metadata, leaf):
                raise DatasetError(f"{uri}: column '{image}' has {empty:,} empty cells, expected an image in each")
            return RawTable(columns, _Images(uri, source, leaf))
        if kind in PATHS:
            cells = source.read(columns=[leaf]).column(0).combine_chunks()
            files = Files(uri, image, column(uri, image, _values(cells, leaf)).tolist())
            return RawTable(columns, files.read, files.digest)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{uri}: not a sound parquet file: {error}") from error
    raise DatasetError(f"{uri}: column '{image}' holds {kind}, expected image bytes, paths, or a struct of both")


def _leaf(source: Any, image: str) -> tuple[str, str]:
    """The column with the images, and its type. For a struct: `bytes` if the first row has them, else `path`."""
    import pyarrow as pa  # noqa: PLC0415

    kind = source.schema_arrow.field(image).type
    if not pa.types.is_struct(kind):
        return image, str(kind)
    # One row is enough: Hugging Face fills the same field in every row.
    cells = next((batch.column(0) for batch in source.iter_batches(1, columns=[image])), None)
    filled = (cells[0].as_py() or {}) if cells is not None and len(cells) else {}
    fields = {field.name: str(field.type) for field in kind if filled.get(field.name) is not None}
    name = next((name for name in ("bytes", "path") if name in fields), None)
    return (f"{image}.{name}", fields[name]) if name else (image, str(kind))


def _values(cells: Any, leaf: str) -> Any:
    """The cells, or, if they are structs, the field named at the end of `leaf`."""
    return cells.field(leaf.rpartition(".")[2]) if cells.type.num_fields else cells


def _nulls(metadata: Any, leaf: str) -> int:
    """Number of empty cells in a column according to the file's statistics, which may be absent.

    Empty cells that the statistics miss fail later, when the image is decoded.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    parts = [group.column(place) for group in groups for place in range(group.num_columns)]
    counted = [part.statistics for part in parts if part.path_in_schema == leaf]
    return sum(statistics.null_count or 0 for statistics in counted if statistics is not None)


class _Images:
    """Reads images in batches, forward from the requested row group.

    A batch is kept until each of its rows has been read, or until KEPT is full. If every row is requested once and
    almost in order, by any number of threads, the file is read once; a request further back reads its group again.
    """

    def __init__(self, uri: str, source: Any, leaf: str) -> None:
        self._uri, self._source, self._leaf = uri, source, leaf
        sizes = [source.metadata.row_group(number).num_rows for number in range(source.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._coming: Iterator[Any] = iter(())
        self._next = -GAP - 1  # first row of the next batch; initially out of reach of any row
        self._kept: dict[int, _Batch] = {}  # by first row
        self._lock = Lock()

    def __call__(self, row: int) -> bytes:
        """The encoded image of a row; b"" if its cell is empty."""
        import pyarrow as pa  # noqa: PLC0415

        try:
            with self._lock:
                first, batch = self._find(row)
                batch.unread -= 1
                if batch.unread == 0:
                    del self._kept[first]
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{self._uri}: row {row:,} cannot be read: {error}; write the table again") from error
        # Outside the lock, so that threads copy their images in parallel.
        return batch.cells[row - first].as_py() or b""

    def _find(self, row: int) -> tuple[int, "_Batch"]:
        """The first row of the batch that holds the row, and the batch."""
        for first, batch in self._kept.items():
            if first <= row < first + len(batch.cells):
                return first, batch
        # The row was already passed, or is far ahead: restart at its row group.
        if not row - GAP <= self._next <= row:
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            groups = range(group, len(self._starts) - 1)
            self._coming = self._source.iter_batches(BATCH, row_groups=groups, columns=[self._leaf], use_threads=False)
            self._next = int(self._starts[group])
        while row >= self._next:
            first, cells = self._next, _values(next(self._coming).column(0), self._leaf)
            self._kept[first] = _Batch(cells, len(cells))
            self._next += len(cells)
            # Oldest batch first; a thread that still needs it reads the group again.
            while len(self._kept) > 1 and sum(batch.cells.nbytes for batch in self._kept.values()) > KEPT:
                del self._kept[next(iter(self._kept))]
        return first, self._kept[first]


@dataclass
class _Batch:
    """Consecutive cells, and the number of them that have not been read yet."""

    cells: Any
    unread: int
