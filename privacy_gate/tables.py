"""Audit tables as files: Parquet, CSV beside an image folder, or NPZ, from a path or any fsspec URL.

Only columns are read here; encoded images stay where they are until a row asks for its own.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.documents import nearest
from privacy_gate.errors import DatasetError, UnavailableError

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class RawTable:
    """Columns as they stand in the file.

    columns    name -> (N,) values, or (N, D) float32 for embeddings; no images among them
    image      reads the encoded bytes of row i; None where no image column was asked for
    paths      the files that rows name, relative to the table's folder; None where bytes are inside
    """

    columns: Mapping[str, NDArray[Any]]
    image: Read | None = None
    paths: Sequence[str] | None = None


def read_bytes(uri: str) -> bytes:
    """The file's bytes. Raises UnavailableError where it cannot be reached, DatasetError where it is not there."""
    import fsspec  # noqa: PLC0415 - commands that read no table start without it

    try:
        with fsspec.open(uri, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise DatasetError(f"{uri}: no such file; correct the uri in the manifest") from error
    except (OSError, ImportError, ValueError) as error:
        raise UnavailableError(f"{uri}: cannot be read: {error}") from error


def open_table(uri: str, form: str, payload: bytes, names: Iterable[str], image: str | None) -> RawTable:
    """The named columns of the table in `payload`, and a reader for its image column.

    Raises DatasetError for what is no such table, or lacks a column.
    """
    wanted = list(names)
    if form == "npz":
        return _npz(uri, payload, wanted, image)
    return _arrow(uri, form, payload, wanted, image)


def _refuse_missing(uri: str, wanted: Iterable[str], found: Sequence[str]) -> None:
    for name in wanted:
        if name not in found:
            raise DatasetError(f"{uri}: no column '{name}'; {nearest(name, found)}; correct columns in the manifest")


def _npz(uri: str, payload: bytes, wanted: list[str], image: str | None) -> RawTable:
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            _refuse_missing(uri, [*wanted, *([image] if image else [])], list(archive.files))
            columns = {name: archive[name] for name in wanted}
            pixels = archive[image] if image else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DatasetError(f"{uri}: not a sound NPZ file: {error}") from error
    if pixels is None:
        return RawTable(columns)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise DatasetError(
            f"{uri}: '{image}' has shape {pixels.shape} and type {pixels.dtype}, "
            "expected (N, H, W) or (N, H, W, 3) of uint8"
        )
    return RawTable({**columns, image or "": np.arange(len(pixels))}, lambda row: _encode(pixels[row]))


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    """Raw pixels as an image file, so that all images take one way in."""
    from PIL import Image  # noqa: PLC0415 - commands that read no table start without it

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _arrow(uri: str, form: str, payload: bytes, wanted: list[str], image: str | None) -> RawTable:
    import pyarrow as pa  # noqa: PLC0415 - commands that read no table start without it
    import pyarrow.csv as arrow_csv  # noqa: PLC0415
    import pyarrow.parquet as arrow_parquet  # noqa: PLC0415

    try:
        if form == "csv":
            table = arrow_csv.read_csv(pa.BufferReader(payload))
        else:
            table = arrow_parquet.read_table(pa.BufferReader(payload))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: not a sound {form} file: {error}") from error
    _refuse_missing(uri, [*wanted, *([image] if image else [])], table.column_names)
    columns = {name: _column(uri, name, table.column(name)) for name in wanted}
    if image is None:
        return RawTable(columns)
    cells = table.column(image).combine_chunks()
    if cells.null_count:
        raise DatasetError(f"{uri}: column '{image}' has {cells.null_count} empty cells, expected an image in each")
    if pa.types.is_struct(cells.type):  # the Hugging Face image struct
        fields = {field.name for field in cells.type}
        if "bytes" in fields and not cells.field("bytes").null_count:
            cells = cells.field("bytes")
        elif "path" in fields and not cells.field("path").null_count:
            cells = cells.field("path")
    if pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        return RawTable(columns, lambda row: bytes(cells[row].as_py()))
    if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        paths = [_inside(uri, image, path) for path in cells.to_pylist()]
        folder = uri.rsplit("/", 1)[0] + "/" if "/" in uri else ""
        return RawTable(columns, lambda row: read_bytes(folder + paths[row]), paths)
    raise DatasetError(
        f"{uri}: column '{image}' holds {cells.type}, expected image bytes, paths, or a struct of bytes and path"
    )


def _inside(uri: str, column: str, path: str) -> str:
    """A path that stays inside the table's folder."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if not parts or path.startswith(("/", "\\")) or ".." in parts or "://" in path or ":" in parts[0]:
        raise DatasetError(f"{uri}: column '{column}' names {path!r}, expected a path inside the table's folder")
    return path


def _column(uri: str, name: str, cells: Any) -> NDArray[Any]:
    import pyarrow as pa  # noqa: PLC0415

    if cells.null_count:
        raise DatasetError(f"{uri}: column '{name}' has {cells.null_count} empty cells, expected none")
    kind = cells.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat = cells.combine_chunks()
        values = flat.flatten().to_numpy(zero_copy_only=False)
        if not len(flat) or len(values) % len(flat) or len(set(np.diff(_offsets(flat)))) > 1:
            raise DatasetError(f"{uri}: column '{name}' has rows of different lengths, expected one fixed size")
        return np.asarray(values).reshape(len(flat), -1)
    return np.asarray(cells.to_pylist())


def _offsets(cells: Any) -> NDArray[np.int64]:
    """Where each row of a list column begins, and where the last ends."""
    if hasattr(cells, "offsets"):
        return np.asarray(cells.offsets.to_numpy())
    return np.arange(len(cells) + 1, dtype=np.int64) * int(cells.type.list_size)


def files_digest(folder_uri: str, paths: Iterable[str]) -> str:
    """sha256 over the sorted (path, size, sha256) of the files that rows name, as JSON lines."""
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        content = read_bytes(folder_uri + path)
        line = json.dumps([path, len(content), hashlib.sha256(content).hexdigest()])
        total.update(line.encode() + b"\n")
    return total.hexdigest()
