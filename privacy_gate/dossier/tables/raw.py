"""The result of every table reader: columns as stored in the file, and a function that reads a row's image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.documents import nearest
from privacy_gate.errors import DatasetError

SHOWN = 5
"""Number of rows that an error names; the rest are only counted."""


@dataclass(frozen=True)
class RawTable:
    """Columns as stored in the file, all with N rows.

    columns  name -> (N,) values, or (N, D) for embeddings; without the image column
    image    reads the encoded bytes of row i, from any thread; None if no image column was requested
    files    sha256 over the image files that rows name; None if the table contains the images
    """

    columns: Mapping[str, NDArray[Any]]
    image: Callable[[int], bytes] | None = None
    files: str | None = None


def refuse_missing(uri: str, wanted: Iterable[str], present: Sequence[str]) -> None:
    """Raises DatasetError unless the table has every wanted column exactly once."""
    for name in wanted:
        if present.count(name) > 1:
            raise DatasetError(f"{uri}: {present.count(name)} columns are called '{name}', expected one")
        if name not in present:
            raise DatasetError(f"{uri}: no column '{name}'; {nearest(name, present)}; correct columns in the manifest")


def column(uri: str, name: str, cells: Any) -> NDArray[Any]:
    """The values of an arrow column: (N,), or (N, D) for lists of length D. Raises DatasetError for empty cells."""
    import pyarrow as pa  # noqa: PLC0415 - commands that read no table start without it

    if cells.null_count:
        rows = ", ".join(str(row) for row in np.flatnonzero(cells.is_null())[:SHOWN])
        raise DatasetError(
            f"{uri}: column '{name}' has {cells.null_count:,} empty cells, expected none; "
            f"counted from 0, the first are in rows {rows}"
        )
    if not pa.types.is_nested(cells.type):
        return np.asarray(cells.to_pylist())
    flat = cells.combine_chunks()
    if pa.types.is_struct(cells.type) or not len(flat) or len(set(flat.value_lengths().to_pylist())) > 1:
        raise DatasetError(f"{uri}: column '{name}' has rows of different lengths, expected one fixed size")
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False)).reshape(len(flat), -1)
