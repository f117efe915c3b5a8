"""Features of the audit images: decoded, run through the frozen backbone, and kept in the table's order."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.compute.images.backbone import public_body
from privacy_gate.compute.images.decoding import decode, scaled, seen, transform_of
from privacy_gate.compute.images.folding import fold
from privacy_gate.compute.images.stamps import triggered
from privacy_gate.compute.machine.device import Machine, single_threaded_kernels
from privacy_gate.compute.machine.memory import out_of_memory
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.views import View
from privacy_gate.errors import CandidateError, DatasetError
from privacy_gate.jobs.kinds import Embed
from privacy_gate.progress import Progress, silent

PREFETCH = 4
"""Batches made ready for a GPU ahead of their turn, beside those under way."""

SHOWN = 20
"""Ids of unreadable images named in the error; the rest are counted."""

Part = tuple[Embed, NDArray[np.float32], NDArray[np.uint8]]
"""A job, its features (rows, D), and the sha256 of its encoded images (rows, 32)."""


@dataclass(frozen=True)
class _Batch:
    """Consecutive rows: content hashes, and features; or which rows cannot be read and why, and no features."""

    content: list[NDArray[np.uint8]]
    features: NDArray[np.float32] | None
    unreadable: dict[int, str]


def nowhere(_: Embed) -> bool:
    """No job was done elsewhere."""
    return False


def embed(
    jobs: Sequence[Embed],
    data: AuditData,
    machine: Machine,
    progress: Progress = silent,
    elsewhere: Callable[[Embed], bool] = nowhere,
) -> Iterator[Part]:
    """The parts, each as soon as it is done: those of one backbone and input after the other, on one loaded model.

    elsewhere  asked of each job just before it is begun: whether another process has done it meanwhile. It then has no
               part here

    Threads take a batch each: they decode it (decoding and resizing leave the interpreter's lock) and, on a CPU,
    run it with single-threaded kernels, since threads that never wait for each other lose nothing on a
    shared machine; a GPU is fed by one of them at a time. An unreadable image spoils its job alone; all of them are
    named, by id, in one DatasetError at the end.
    """
    device, alike = machine.torch_device(), _alike(jobs)
    threads = machine.decoders()
    ahead = threads + (1 if device.type == "cpu" else PREFETCH)
    unreadable: dict[int, str] = {}
    done, total = 0, sum(job.last - job.first for job in jobs)
    with single_threaded_kernels(device), ThreadPoolExecutor(threads) as pool:

        def begun(same: Sequence[Embed]) -> Iterator[tuple[Embed, Iterator[_Batch] | None]]:
            work, size = _Work(same[0], data, device), machine.images(same[0].input.size)
            return _begun(same, lambda job: work.batches(job, size, pool), ahead, elsewhere)

        for job, batches in chain.from_iterable(map(begun, alike)):
            if batches is None:
                done += job.last - job.first
                progress("embed images", done, total)
                continue
            made = []
            for batch in batches:
                made.append(batch)
                unreadable |= batch.unreadable
                done += len(batch.content)
                progress("embed images", done, total)
            features = [part.features for part in made if part.features is not None]
            if len(features) == len(made):
                yield job, np.concatenate(features), np.stack([row for part in made for row in part.content])
    if unreadable:
        raise DatasetError(all_named(unreadable, data))


def _alike(jobs: Sequence[Embed]) -> list[list[Embed]]:
    """The jobs, those put together that one model and one transform serve."""
    alike: dict[tuple[Backbone, Input], list[Embed]] = {}
    for job in jobs:
        alike.setdefault((job.backbone, job.input), []).append(job)
    return list(alike.values())


def all_named(unreadable: Mapping[int, str], data: AuditData) -> str:
    """What is said of images that cannot be read, by row and reason."""
    named = ", ".join(str(data.ids[row]) for row in list(unreadable)[:SHOWN])
    more = f" and {len(unreadable) - SHOWN:,} more" if len(unreadable) > SHOWN else ""
    first = next(iter(unreadable.values()))
    return f"{len(unreadable):,} images cannot be read: {named}{more}; repair or remove them; the first is {first}"


def _begun(
    jobs: Sequence[Embed],
    begin: Callable[[Embed], list[Future[_Batch]]],
    ahead: int,
    elsewhere: Callable[[Embed], bool],
) -> Iterator[tuple[Embed, Iterator[_Batch] | None]]:
    """Each job with its batches as they are done; None: it is done elsewhere.

    A job is begun as soon as no more than `ahead` batches are left of those before it: no thread waits for another.
    """
    waiting, flying = deque(jobs), list[Future[_Batch]]()
    begun: deque[tuple[Embed, list[Future[_Batch]] | None]] = deque()

    def fill() -> None:
        flying[:] = [batch for batch in flying if not batch.done()]
        while waiting and len(flying) <= ahead:
            job = waiting.popleft()
            batches = None if elsewhere(job) else begin(job)
            flying.extend(batches or ())
            begun.append((job, batches))

    def finished(batches: Sequence[Future[_Batch]]) -> Iterator[_Batch]:
        for batch in batches:
            found = batch.result()
            fill()
            yield found

    fill()
    while begun:
        job, batches = begun.popleft()
        yield job, None if batches is None else finished(batches)
        fill()


class _Work:
    """What every thread shares: the model, the transform and the table."""

    def __init__(self, job: Embed, data: AuditData, device: torch.device) -> None:
        self._shape, self._transform = job.input, transform_of(job.input)
        self._data, self._device = data, device
        # Threads that wait for each other here would compute no faster side by side, and need memory for all batches.
        self._turn: AbstractContextManager[Any] = nullcontext() if device.type == "cpu" else Lock()
        self._model: Any = self._tried(job)

    def batches(self, job: Embed, size: int, pool: ThreadPoolExecutor) -> list[Future[_Batch]]:
        """The job, begun: batches of so many rows, in their order."""
        starts = range(job.first, job.last, size)
        return [pool.submit(self._batch, first, min(first + size, job.last), job.view) for first in starts]

    def _batch(self, first: int, last: int, view: View) -> _Batch:
        """Rows first <= i < last, seen so."""
        content, pixels, unreadable = [], [], {}
        for row in range(first, last):
            payload = self._payload(row)
            content.append(np.frombuffer(hashlib.sha256(payload).digest(), np.uint8))
            try:
                pixels.append(decode(payload, self._transform))
            except DatasetError as error:
                unreadable[row] = str(error)
        features = None if unreadable else self._forward(self._shown(scaled(pixels, self._shape), view))
        return _Batch(content, features, unreadable)

    def _shown(self, pixels: torch.Tensor, view: View) -> torch.Tensor:
        pixels = seen(pixels, view)
        return pixels if view.trigger is None else triggered(pixels, self._shape, view.trigger)

    def _payload(self, row: int) -> bytes:
        if self._data.image is None:
            raise DatasetError("the table holds embeddings; the recipe names an image backbone")
        return self._data.image(row)

    def _forward(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Features (B, D) of images (B, 3, S, S); by halves where memory is too small for all at once."""
        try:
            return self._at_once(pixels)
        except (MemoryError, RuntimeError) as error:
            if len(pixels) == 1 or not out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # does nothing where no GPU is in use
        return np.concatenate([self._forward(half) for half in pixels.chunk(2)])

    def _at_once(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        with self._turn, torch.inference_mode():
            features = self._model(pixels.to(self._device, memory_format=torch.channels_last))
        return np.asarray(features.float().cpu().numpy())

    def _tried(self, job: Embed) -> torch.nn.Module:
        """The backbone, its BatchNorms folded where that changes nothing but rounding.

        Raises CandidateError for one that does not turn images of the recipe's size into vectors.
        """
        name, size = job.backbone.name, job.input.size
        model: Any = public_body(job.backbone)
        model = model.to(self._device, memory_format=torch.channels_last)
        trial = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(self._device)
        try:
            folded, features = fold(model, trial)
        except (AssertionError, RuntimeError, ValueError) as error:
            if out_of_memory(error):
                raise
            raise CandidateError(
                f"recipe: {name} does not take images of {size} x {size} pixels: {error}; correct input.size"
            ) from error
        if features.ndim != 2:
            raise CandidateError(f"recipe: {name} gives features of shape {tuple(features.shape)}, expected (1, D)")
        return folded
