"""Audit tables as NumPy archives."""

import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from privacy_gate.dossier.tables.raw import RawTable, refuse_missing
from privacy_gate.errors import DatasetError

# Exceptions that numpy and zipfile raise on damaged or hostile bytes.
BROKEN = (ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(uri: str, file: IO[bytes], wanted: list[str], image: str | None) -> RawTable:
    """Reads the wanted arrays whole, and never unpickles.

    Images are (N, H, W) or (N, H, W, 3) uint8, or (N,) encoded bytes. Raises DatasetError.
    """
    names = [*wanted, *([image] if image else [])]
    try:
        with NpzFile(file, allow_pickle=False) as archive:  # a pickle could execute code
            refuse_missing(uri, names, list(archive.files))
            columns = {name: archive[name] for name in names}
        pixels = columns.pop(image) if image else None
        columns = {name: array.astype(np.str_) if array.dtype.kind == "S" else array for name, array in columns.items()}
    except BROKEN as error:
        raise DatasetError(f"{uri}: not a sound NPZ file: {error}") from error
    arrays = {**columns, **({} if pixels is None else {str(image): pixels})}
    if len({array.shape[:1] for array in arrays.values()}) > 1 or any(array.ndim == 0 for array in arrays.values()):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DatasetError(f"{uri}: arrays have shapes {shapes}, expected the same number of rows in each")
    return RawTable(columns, None if pixels is None else _image(uri, str(image), pixels))


def _image(uri: str, name: str, pixels: NDArray[Any]) -> Callable[[int], bytes]:
    """A function that returns row i as the bytes of an image file."""
    if pixels.dtype.kind == "S" and pixels.ndim == 1:
        return lambda row: bytes(pixels[row])
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
        raise DatasetError(
            f"{uri}: '{name}' has shape {pixels.shape} and type {pixels.dtype}, "
            "expected (N, H, W) or (N, H, W, 3) of uint8, or (N,) of encoded bytes"
        )
    # A Netpbm header before the raw pixels makes an image file, with the same bytes on every machine. Encoding as PNG
    # would depend on the version of zlib.
    header = f"P{5 if pixels.ndim == 3 else 6} {pixels.shape[2]} {pixels.shape[1]} 255\n".encode()
    return lambda row: header + pixels[row].tobytes()
