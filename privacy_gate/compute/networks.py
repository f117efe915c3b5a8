"""References whose network is trained, not its head alone: FiLM, LoRA, full fine-tuning, from scratch.

What all references share (frozen weights) is held once; what each of them trains is stacked, and torch.func
trains the stack in one go. A stack of one takes torch's plain path.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from privacy_gate.candidate import Recipe, View
from privacy_gate.compute.backbone import Tensors
from privacy_gate.compute.course import Course
from privacy_gate.compute.embed import seen
from privacy_gate.compute.machine import Machine, single_threaded_kernels
from privacy_gate.compute.optimizers import stepper
from privacy_gate.compute.parts import network, remembered, start, trained
from privacy_gate.compute.subsets import Subset, shown
from privacy_gate.progress import Progress, silent

GPU_BLOCK = 16
"""References stacked on a GPU to begin with; halved until they fit."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Reference `index`: every tensor that its training changed, by name."""

    index: int
    tensors: Tensors


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
        recipe, views = self._recipe, len(self._recipe.views)
        # functional_call puts tensors into the module for a while: threads must not share it.
        stack = Stack(copy.deepcopy(self._model), recipe, [index for index, _ in block])
        step = stepper(stack.parameters, stack.gradient, recipe.optimizer)
        for epoch in range(recipe.epochs):
            lr = recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
            order = np.stack([shown(index, epoch, rows, views, len(self._images)) for index, rows in block])
            for first in range(0, order.shape[1], recipe.batch_size):
                places = order[:, first : first + recipe.batch_size]
                x = self._images.take(places.ravel(), self._device, self._dtype)
                y = self._label[torch.from_numpy(places % len(self._images)).to(self._device)]
                stack.differentiate(x.view(*places.shape, *x.shape[1:]), y)
                step(lr)
            self._course.advance(len(block))
        return stack.networks()


class Stack:
    """What M references train, laid out as one (M, P) tensor with its gradient beside it."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe, indices: Sequence[int]) -> None:
        self._model, self._indices = model, indices
        starts = [start(model, recipe, index) for index in indices]
        self._names, buffers = trained(model, recipe), remembered(model, recipe)
        self._shapes = [starts[0][name].shape for name in self._names]
        self._sizes = [starts[0][name].numel() for name in self._names]
        flat = [torch.cat([tensors[name].reshape(-1) for name in self._names]) for tensors in starts]
        self.parameters = torch.stack(flat)
        self.gradient = torch.zeros_like(self.parameters)
        self._buffers = {name: torch.stack([tensors[name] for tensors in starts]) for name in buffers}
        self._smoothing = recipe.label_smoothing
        for parameter in model.parameters():
            parameter.requires_grad = False

    def differentiate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Sets the gradient of every reference's mean cross-entropy: x (M, B, 3, S, S), y (M, B)."""
        if len(self._indices) == 1:
            parameters = {name: value[0].requires_grad_() for name, value in self._split(self.parameters.detach())}
            loss = self._loss(parameters, {name: value[0] for name, value in self._buffers.items()}, x[0], y[0])
            found = torch.autograd.grad(loss, list(parameters.values()))
            torch.cat([part.reshape(1, -1) for part in found], dim=1, out=self.gradient)
            return
        each: Callable[..., Any] = vmap(grad(self._loss), in_dims=(0, 0, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention knows no stacks: vmap would loop over it
            gradients = each(dict(self._split(self.parameters)), self._buffers, x, y)
        torch.cat([gradients[name].flatten(1) for name in self._names], dim=1, out=self.gradient)

    def _loss(self, parameters: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = functional_call(self._model, {**parameters, **buffers}, x)
        return cross_entropy(logits, y, label_smoothing=self._smoothing)

    def _split(self, flat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Views of (M, P), each (M, *shape), by name."""
        for name, shape, part in zip(self._names, self._shapes, torch.split(flat, self._sizes, dim=1), strict=True):
            yield name, part.view(len(flat), *shape)

    def networks(self) -> list[TrainedNetwork]:
        """The references as they are now."""
        tensors = {**dict(self._split(self.parameters)), **self._buffers}
        return [
            TrainedNetwork(index, {name: value[place].clone() for name, value in tensors.items()})
            for place, index in enumerate(self._indices)
        ]


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
