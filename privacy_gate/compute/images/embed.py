"""Computes the features of the audit images with the frozen backbone, in the table's order."""

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
from privacy_gate.compute.images.decoding import apply_view, decode, scaled, transform_of
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
"""Number of batches prepared for a GPU in advance, in addition to one per decoding thread."""

SHOWN = 20
"""Number of unreadable images whose ids the error names; the rest are counted."""

Part = tuple[Embed, NDArray[np.float32], NDArray[np.uint8]]
"""A job, its features (rows, D), and the sha256 of its encoded images (rows, 32)."""


@dataclass(frozen=True)
class _Batch:
    """Content hashes and features of consecutive rows; if a row cannot be read, no features but the reasons by row."""

    content: list[NDArray[np.uint8]]
    features: NDArray[np.float32] | None
    unreadable: dict[int, str]


def nowhere(_: Embed) -> bool:
    """For runs without other processes: no job is done elsewhere."""
    return False


def embed(
    jobs: Sequence[Embed],
    data: AuditData,
    machine: Machine,
    progress: Progress = silent,
    elsewhere: Callable[[Embed], bool] = nowhere,
) -> Iterator[Part]:
    """The parts, each as soon as it is done. Jobs of one backbone and input share a loaded model and run together.

    elsewhere  called for each job just before it begins: whether another process has done it meanwhile. Such a job is
               skipped and yields no part

    Each thread takes a batch and decodes it (decoding and resizing release the interpreter's lock). On a CPU it then
    runs the model with single-threaded kernels, so that threads never wait for each other, even on a shared machine.
    Only one thread at a time uses a GPU. An unreadable image fails only its own job; at the end, one DatasetError names
    all of them by id.
    """
    device, alike = machine.torch_device(), _alike(jobs)
    threads = machine.decoders()
    # On a CPU, threads decode and compute, and one batch waits; a GPU also needs decoded batches in stock.
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
            finished = []
            for batch in batches:
                finished.append(batch)
                unreadable |= batch.unreadable
                done += len(batch.content)
                progress("embed images", done, total)
            features = [part.features for part in finished if part.features is not None]
            if len(features) == len(finished):
                yield job, np.concatenate(features), np.stack([row for part in finished for row in part.content])
    if unreadable:
        raise DatasetError(all_named(unreadable, data))


def _alike(jobs: Sequence[Embed]) -> list[list[Embed]]:
    """The jobs, grouped by backbone and input, so that a group shares one model and one transform."""
    alike: dict[tuple[Backbone, Input], list[Embed]] = {}
    for job in jobs:
        alike.setdefault((job.backbone, job.input), []).append(job)
    return list(alike.values())


def all_named(unreadable: Mapping[int, str], data: AuditData) -> str:
    """The error message about unreadable images; unreadable: reason by row."""
    named = ", ".join(str(data.ids[row]) for row in list(unreadable)[:SHOWN])
    more = f" and {len(unreadable) - SHOWN:,} more" if len(unreadable) > SHOWN else ""
    first = next(iter(unreadable.values()))
    return f"{len(unreadable):,} images cannot be read: {named}{more}; repair or remove them (the first: {first})"


def _begun(
    jobs: Sequence[Embed],
    begin: Callable[[Embed], list[Future[_Batch]]],
    ahead: int,
    elsewhere: Callable[[Embed], bool],
) -> Iterator[tuple[Embed, Iterator[_Batch] | None]]:
    """Each job with an iterator over its finished batches; None: the job was done elsewhere.

    A job begins as soon as at most `ahead` batches of earlier jobs are unfinished, so threads are never idle between
    jobs.
    """
    waiting, flying = deque(jobs), list[Future[_Batch]]()
    begun: deque[tuple[Embed, list[Future[_Batch]] | None]] = deque()

    def fill() -> None:
        # Begins further jobs while fewer batches are unfinished than threads need.
        flying[:] = [batch for batch in flying if not batch.done()]
        while waiting and len(flying) <= ahead:
            job = waiting.popleft()
            batches = None if elsewhere(job) else begin(job)
            flying.extend(batches or ())
            begun.append((job, batches))

    def finished(batches: Sequence[Future[_Batch]]) -> Iterator[_Batch]:
        for batch in batches:
            result = batch.result()
            fill()  # before yielding, so that threads have work while the caller stores the result
            yield result

    fill()
    while begun:
        job, batches = begun.popleft()
        yield job, None if batches is None else finished(batches)
        fill()


class _Work:
    """State that all threads share: the model, the transform and the table."""

    def __init__(self, job: Embed, data: AuditData, device: torch.device) -> None:
        self._shape, self._transform = job.input, transform_of(job.input)
        self._data, self._device = data, device
        # On a GPU, parallel forward passes would be no faster and would need memory for all batches: one at a time.
        self._turn: AbstractContextManager[Any] = nullcontext() if device.type == "cpu" else Lock()
        self._model: Any = self._tried(job)

    def batches(self, job: Embed, size: int, pool: ThreadPoolExecutor) -> list[Future[_Batch]]:
        """Submits the job in batches of `size` rows; their futures in order."""
        starts = range(job.first, job.last, size)
        return [pool.submit(self._batch, first, min(first + size, job.last), job.view) for first in starts]

    def _batch(self, first: int, last: int, view: View) -> _Batch:
        """Rows first <= i < last in this view."""
        content, pixels, unreadable = [], [], {}
        for row in range(first, last):
            payload = self._payload(row)
            content.append(np.frombuffer(hashlib.sha256(payload).digest(), np.uint8))
            try:
                pixels.append(decode(payload, self._transform))
            except DatasetError as error:
                unreadable[row] = str(error)
        features = None if unreadable else self._forward(self._viewed(scaled(pixels, self._shape), view))
        return _Batch(content, features, unreadable)

    def _viewed(self, pixels: torch.Tensor, view: View) -> torch.Tensor:
        pixels = apply_view(pixels, view)
        return pixels if view.trigger is None else triggered(pixels, self._shape, view.trigger)

    def _payload(self, row: int) -> bytes:
        if self._data.image is None:
            raise DatasetError(
                "the table holds embeddings, but the recipe names an image backbone: give a table of images, or "
                "set backbone 'identity'"
            )
        return self._data.image(row)

    def _forward(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Features (B, D) of images (B, 3, S, S); splits the batch in halves if memory runs out."""
        try:
            return self._at_once(pixels)
        except (MemoryError, RuntimeError) as error:
            if len(pixels) == 1 or not out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # a no-op without a GPU
        return np.concatenate([self._forward(half) for half in pixels.chunk(2)])

    def _at_once(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        with self._turn, torch.inference_mode():
            features = self._model(pixels.to(self._device, memory_format=torch.channels_last))
        return np.asarray(features.float().cpu().numpy())

    def _tried(self, job: Embed) -> torch.nn.Module:
        """The backbone, with BatchNorms folded if that changes results only by rounding.

        Raises CandidateError if it does not map images of the recipe's size to vectors.
        """
        name, size = job.backbone.name, job.input.size
        model: Any = public_body(job.backbone)
        model = model.to(self._device, memory_format=torch.channels_last)
        # A fixed random image: folding compares both networks' outputs on it, and its shape tests the recipe's input.
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
            raise CandidateError(
                f"recipe: {name} returns features of shape {tuple(features.shape)}, expected (1, D): name a backbone "
                "that pools its features"
            )
        return folded
