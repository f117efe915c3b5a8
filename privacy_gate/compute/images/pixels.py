"""All images of the table, decoded once and transformed for the network."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from privacy_gate.compute.images.decoding import decode, scaled, transform_of
from privacy_gate.compute.images.embed import all_named
from privacy_gate.compute.machine.scratch import scratch_file
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.errors import DatasetError
from privacy_gate.progress import Progress, silent

IN_MEMORY = 2 << 30
"""Maximum bytes of images kept in memory; a larger table goes to a file that the system pages in on demand."""


def read_pixels(data: AuditData, shape: Input, threads: int, progress: Progress = silent) -> torch.Tensor:
    """Every row's image after the recipe's transform: (N, 3, S, S) float32, on the CPU.

    Raises one DatasetError that names all unreadable images; UnavailableError if the disk has no room.
    """
    pixels = _room((data.rows, 3, shape.size, shape.size))
    transform, image = transform_of(shape), _reader(data)
    unreadable: dict[int, str] = {}

    def read(row: int) -> None:
        # Errors are collected, so that one run reports all unreadable images.
        try:
            pixels[row] = scaled([decode(image(row), transform)], shape)[0].numpy()
        except DatasetError as error:
            unreadable[row] = str(error)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for done, _ in enumerate(pool.map(read, range(data.rows)), 1):
            progress("decode images", done, data.rows)
    if unreadable:
        raise DatasetError(all_named(dict(sorted(unreadable.items())), data))
    return torch.from_numpy(pixels)


def _reader(data: AuditData) -> Callable[[int], bytes]:
    if data.image is None:
        raise DatasetError("the table holds embeddings, but the recipe trains an image network: give a table of images")
    return data.image


def _room(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """An uninitialised float32 array, in memory or mapped from a temporary file."""
    size = 4 * math.prod(shape)
    if size <= IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    with scratch_file(size) as file:  # the mapping stays valid after the file is closed
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
