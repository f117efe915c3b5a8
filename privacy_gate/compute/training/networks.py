"""Trains references whose recipe trains more than a head: FiLM, LoRA, full fine-tuning, or from scratch.

Frozen weights, which all references share, are kept once. The trained weights of several references are stacked, and
torch.func trains the stack in one go. A stack of one takes torch's plain path.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from privacy_gate.compute.images.decoding import apply_view
from privacy_gate.compute.machine.device import Machine, threads_in_kernels
from privacy_gate.compute.machine.spread import Tally
from privacy_gate.compute.training.network_stack import NetworkStack, TrainedNetwork, layout, shared_copy, stack_size
from privacy_gate.compute.training.optimizers import stepper
from privacy_gate.compute.training.parts import network
from privacy_gate.compute.training.private import private_batches
from privacy_gate.dossier.recipe import DpSgd, Recipe
from privacy_gate.dossier.views import View
from privacy_gate.jobs.subsets import Subset, shown
from privacy_gate.progress import Progress, silent
from privacy_gate.weights.layout import Tensors

Kept = TypeVar("Kept")
"""The result that the caller's `keep` extracts from a trained network."""


class Images:
    """All images of the table, (N, 3, S, S), and the views in which networks see them."""

    def __init__(self, pixels: torch.Tensor, views: Sequence[View]) -> None:
        self.pixels, self._views = pixels, views

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, places: NDArray[np.int64], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Images by place, (B,) -> (B, 3, S, S); place v * N + row means this row in view v."""
        # Indexed on the images' device first, so that only the batch is transferred.
        rows, view = torch.from_numpy(places % len(self)), places // len(self)
        batch = self.pixels[rows.to(self.pixels.device)].to(device, dtype)
        for number in np.unique(view[view > 0]):
            chosen = torch.from_numpy(view == number).to(device)
            batch[chosen] = apply_view(batch[chosen], self._views[number])
        return batch


def train_networks(
    images: Images,
    label: NDArray[np.int64],
    recipe: Recipe,
    subsets: Sequence[Subset],
    machine: Machine,
    keep: Callable[[TrainedNetwork], Kept],
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> Generator[Kept, None, None]:
    """Trains one network per subset, as the recipe says; yields `keep(network)` for each, as soon as it is trained.

    label (N,); subsets: rows of each reference; the training thread calls keep. A network equals, up to rounding, one
    that a plain torch loop trains on the same batches, whatever its block. On a CPU, every thread trains references of
    its own, one at a time, because a convolution uses a core fully; if there are fewer references than threads, kernels
    use the remaining threads. A GPU trains `machine.block` references at once, or as many as suit it; a block that does
    not fit in memory is halved and repeated, and later blocks are no larger. At most threads + 1 blocks are in training
    or waiting to be taken, which limits how much work an interrupt can lose.
    """
    device = machine.torch_device()
    model = network(recipe).to(device, dtype)
    block = _block_size(model, recipe, images, machine)
    blocks = _blocks(subsets, block)
    tally = Tally("train references", len(subsets), progress, steps=recipe.epochs)
    work = _Work(model, images, torch.as_tensor(label, device=device), recipe, block, tally, keep)
    cores = machine.computing_threads()
    # Cores beyond the number of blocks go to the kernels: cores // threads each.
    threads = max(1, min(cores, len(blocks)))
    with threads_in_kernels(device, cores // threads), ThreadPoolExecutor(threads) as workers:
        running: set[Future[list[Kept]]] = set()
        try:
            yield from _as_done(workers, work.train, deque(blocks), running, threads + 1)
        finally:
            tally.abandon()
            for future in running:
                future.cancel()


def _as_done(
    workers: ThreadPoolExecutor,
    train: Callable[[list[Subset]], list[Kept]],
    blocks: deque[list[Subset]],
    running: set[Future[list[Kept]]],
    most: int,
) -> Iterator[Kept]:
    """Results in order of completion; at most `most` blocks are in training or waiting to be taken."""
    while blocks or running:
        while blocks and len(running) < most:
            running.add(workers.submit(train, blocks.popleft()))
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        first = min(done, key=_failed)  # take finished results before the failure of another block ends the loop
        running.remove(first)
        yield from first.result()


def _failed(future: Future[list[Kept]]) -> bool:
    return future.exception() is not None


def _block_size(model: torch.nn.Module, recipe: Recipe, images: Images, machine: Machine) -> int:
    """Number of references per block to start with."""
    device = machine.torch_device()
    if recipe.precision != "float32":
        return 1  # vmap does not support BatchNorm on bfloat16 images with float32 statistics
    if machine.block or device.type != "cuda":
        return machine.block or 1
    return stack_size(model, recipe, images.pixels.shape[-1], torch.cuda.mem_get_info(device)[0])


def _blocks(subsets: Sequence[Subset], size: int) -> list[list[Subset]]:
    """Blocks of references with equally many training rows, so that no batch needs padding."""
    ordered = sorted(subsets, key=lambda subset: (len(subset[1]), subset[0]))
    blocks = []
    for _, same in groupby(ordered, key=lambda subset: len(subset[1])):
        group = list(same)
        blocks += [group[first : first + size] for first in range(0, len(group), size)]
    return blocks


class _Work(Generic[Kept]):
    """Trains blocks; holds the model, images, labels and settings that all blocks share."""

    def __init__(
        self,
        model: torch.nn.Module,
        images: Images,
        label: torch.Tensor,
        recipe: Recipe,
        most: int,
        tally: Tally,
        keep: Callable[[TrainedNetwork], Kept],
    ) -> None:
        self._model, self._images, self._label, self._recipe = model, images, label, recipe
        self._most, self._tally, self._keep = most, tally, keep
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype

    def train(self, block: list[Subset]) -> list[Kept]:
        """Trains the block, in parts if the device's memory is too small for all of it."""
        results: list[Kept] = []
        while block:
            part = block[: self._most]
            if trained := self._fitting(part):
                results += [self._keep(reference) for reference in trained]
                block = block[len(part) :]
            else:
                torch.cuda.empty_cache()
        return results

    def _fitting(self, part: list[Subset]) -> list[TrainedNetwork]:
        """The part's networks; an empty list if memory is too small, and then later parts are at most half as large."""
        try:
            return self._train(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            # Threads share `_most`: another one may have lowered it further meanwhile.
            self._most = min(self._most, len(part) // 2)
            return []

    def _train(self, block: list[Subset]) -> list[TrainedNetwork]:
        recipe = self._recipe
        stack = NetworkStack(self._model, recipe, [index for index, _ in block])
        step = stepper(stack.parameters, stack.gradient, recipe.optimizer)
        for epoch in range(recipe.epochs):
            lr = recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
            privacy = recipe.privacy
            for _ in self._private(stack, block, epoch, privacy) if privacy else self._plain(stack, block, epoch):
                step(lr)
            self._tally.add(len(block))
        return stack.networks()

    def _plain(self, stack: NetworkStack, block: list[Subset], epoch: int) -> Iterator[None]:
        """Sets the stack's gradient, one step of the epoch after the other."""
        views, size = len(self._recipe.views), self._recipe.batch_size
        order = np.stack([shown(index, epoch, rows, views, len(self._images)) for index, rows in block])
        for first in range(0, order.shape[1], size):
            stack.differentiate(*self._inputs(order[:, first : first + size]))
            yield

    def _private(self, stack: NetworkStack, block: list[Subset], epoch: int, privacy: DpSgd) -> Iterator[None]:
        """Sets the stack's gradient by DP-SGD, step by step, as `stack.train_block` does for heads."""
        recipe = self._recipe
        for batch in private_batches(block, epoch, recipe, self._label.repeat(len(recipe.views))):
            x, y = self._inputs(batch.rows.cpu().numpy())
            stack.differentiate_clipped(x, y, batch.present.to(self._dtype), privacy.clip)
            stack.gradient += batch.noise(privacy, stack.gradient.shape[1:], stack.gradient)
            stack.gradient /= recipe.batch_size  # the expected size of a Poisson batch; the actual one is private
            yield

    def _inputs(self, places: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels by place (see Images.take), (M, B) -> (M, B, 3, S, S) and (M, B)."""
        x = self._images.take(places.ravel(), self._device, self._dtype)
        y = self._label[torch.from_numpy(places % len(self._images)).to(self._device)]
        return x.view(*places.shape, *x.shape[1:]), y


def network_logits(
    model: torch.nn.Module, tensors: Tensors, images: Images, machine: Machine, view: int = 0
) -> NDArray[np.float32]:
    """Logits (N, C) of the network with these tensors on every image in one view; threads may share `model`."""
    device = machine.torch_device()
    first = next(model.parameters())
    on_device = {name: tensor.to(first.device) for name, tensor in tensors.items()}
    own, form = shared_copy(model).eval(), layout(model, device)
    parts, size = [], machine.images(images.pixels.shape[-1])
    with torch.inference_mode():
        for begin in range(0, len(images), size):
            rows = np.arange(begin, min(begin + size, len(images)))
            x = images.take(rows + view * len(images), device, first.dtype).contiguous(memory_format=form)
            parts.append(functional_call(own, on_device, x).float().cpu())
    return np.asarray(torch.cat(parts).numpy())
