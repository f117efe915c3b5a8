"""References whose network is trained, not its head alone: FiLM, LoRA, full fine-tuning, from scratch.

What all references share (frozen weights) is held once; what each of them trains is stacked, and torch.func
trains the stack in one go. A stack of one takes torch's plain path.
"""

import copy
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from privacy_gate.candidate import DpSgd, Recipe, View
from privacy_gate.compute.backbone import Tensors
from privacy_gate.compute.course import Course
from privacy_gate.compute.embed import seen
from privacy_gate.compute.machine import Machine, single_threaded_kernels
from privacy_gate.compute.network_stack import NetworkStack, TrainedNetwork
from privacy_gate.compute.optimizers import stepper
from privacy_gate.compute.parts import network
from privacy_gate.compute.private import private_batches
from privacy_gate.compute.subsets import Subset, shown
from privacy_gate.progress import Progress, silent

GPU_BLOCK = 16
"""References stacked on a GPU to begin with; halved until they fit."""


class Images:
    """All images of the table on the device, (N, 3, S, S), and how they are shown."""

    def __init__(self, pixels: torch.Tensor, views: Sequence[View]) -> None:
        self.pixels, self._views = pixels, views

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, places: NDArray[np.int64], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """The images at v * N + row in view v: (B,) -> (B, 3, S, S)."""
        rows, view = torch.from_numpy(places % len(self)), places // len(self)
        batch = self.pixels[rows.to(self.pixels.device)].to(device, dtype)
        for number in np.unique(view[view > 0]):
            chosen = torch.from_numpy(view == number).to(device)
            batch[chosen] = seen(batch[chosen], self._views[number])
        return batch


def train_networks(
    images: Images,
    label: NDArray[np.int64],
    recipe: Recipe,
    subsets: Sequence[Subset],
    machine: Machine,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> Generator[TrainedNetwork, None, None]:
    """Trains one network per subset, as the recipe says; yields them block by block.

    label (N,); subsets: rows of each reference. A network equals the one a plain loop of torch trains on the same
    batches, up to rounding, whatever its block. On a CPU every thread trains references of its own, one
    at a time: a convolution fills a core by itself. A GPU takes `machine.block` at once, or as many as
    fit: a block that does not is halved and tried again.
    """
    device = machine.torch_device()
    model = network(recipe).to(device, dtype)
    course = Course(len(subsets), recipe.epochs, progress)
    block = machine.block or (GPU_BLOCK if device.type == "cuda" else 1)
    work = _Work(model, images, torch.as_tensor(label, device=device), recipe, device, dtype, course)
    threads = machine.cpu_threads() if device.type == "cpu" else 1
    with single_threaded_kernels(device), ThreadPoolExecutor(threads) as workers:
        running = [workers.submit(work.train, part) for part in _blocks(subsets, block)]
        try:
            yield from _finished(running)
        finally:
            course.abandon()
            for future in running:
                future.cancel()


def _finished(running: list[Future[list[TrainedNetwork]]]) -> Iterator[TrainedNetwork]:
    while running:
        yield from running.pop(0).result()


def _blocks(subsets: Sequence[Subset], size: int) -> list[list[Subset]]:
    """Blocks of references that are trained on equally many rows, so that no batch needs filling."""
    ordered = sorted(subsets, key=lambda subset: (len(subset[1]), subset[0]))
    blocks = []
    for _, alike in groupby(ordered, key=lambda subset: len(subset[1])):
        group = list(alike)
        blocks += [group[first : first + size] for first in range(0, len(group), size)]
    return blocks


class _Work:
    """What all blocks share."""

    def __init__(
        self,
        model: torch.nn.Module,
        images: Images,
        label: torch.Tensor,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype,
        course: Course,
    ) -> None:
        self._model, self._images, self._label, self._recipe = model, images, label, recipe
        self._device, self._dtype, self._course = device, dtype, course

    def train(self, block: list[Subset]) -> list[TrainedNetwork]:
        """Trains the block; halves it where the device's memory is too small for all at once."""
        try:
            return self._train(block)
        except torch.cuda.OutOfMemoryError:
            if len(block) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(block) // 2
        return [*self.train(block[:half]), *self.train(block[half:])]

    def _train(self, block: list[Subset]) -> list[TrainedNetwork]:
        recipe = self._recipe
        # functional_call puts tensors into the module for a while: threads must not share it.
        stack = NetworkStack(copy.deepcopy(self._model), recipe, [index for index, _ in block])
        step = stepper(stack.parameters, stack.gradient, recipe.optimizer)
        for epoch in range(recipe.epochs):
            lr = recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
            privacy = recipe.privacy
            for _ in self._private(stack, block, epoch, privacy) if privacy else self._plain(stack, block, epoch):
                step(lr)
            self._course.advance(len(block))
        return stack.networks()

    def _plain(self, stack: NetworkStack, block: list[Subset], epoch: int) -> Iterator[None]:
        """Sets the stack's gradient, one step of the epoch after the other."""
        views, size = len(self._recipe.views), self._recipe.batch_size
        order = np.stack([shown(index, epoch, rows, views, len(self._images)) for index, rows in block])
        for first in range(0, order.shape[1], size):
            stack.differentiate(*self._shown(order[:, first : first + size]))
            yield

    def _private(self, stack: NetworkStack, block: list[Subset], epoch: int, privacy: DpSgd) -> Iterator[None]:
        """Likewise by DP-SGD, as `stack.train_block` does it for heads."""
        recipe = self._recipe
        for batch in private_batches(block, epoch, recipe, self._label.repeat(len(recipe.views))):
            x, y = self._shown(batch.rows.cpu().numpy())
            stack.differentiate_clipped(x, y, batch.present.to(self._dtype), privacy.clip)
            stack.gradient += batch.noise(privacy, stack.gradient.shape[1:], stack.gradient)
            stack.gradient /= recipe.batch_size
            yield

    def _shown(self, places: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of rows in views, (M, B) -> (M, B, 3, S, S) and (M, B)."""
        x = self._images.take(places.ravel(), self._device, self._dtype)
        y = self._label[torch.from_numpy(places % len(self._images)).to(self._device)]
        return x.view(*places.shape, *x.shape[1:]), y


def network_logits(
    model: torch.nn.Module, tensors: Tensors, images: Images, machine: Machine, view: int = 0
) -> NDArray[np.float32]:
    """Logits (N, C) of the network with these tensors on every image in one view; the model's mode is left at eval."""
    device = machine.torch_device()
    first = next(model.parameters())
    inside = {name: tensor.to(first.device) for name, tensor in tensors.items()}
    model.eval()
    parts, size = [], machine.images(images.pixels.shape[-1])
    with torch.inference_mode():
        for begin in range(0, len(images), size):
            rows = np.arange(begin, min(begin + size, len(images)))
            x = images.take(rows + view * len(images), device, first.dtype)
            parts.append(functional_call(model, inside, x).float().cpu())
    return np.asarray(torch.cat(parts).numpy())
