"""Networks trained together: one step of M references that share all tensors except those that they train."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from privacy_gate.compute.training.optimizers import STATE
from privacy_gate.compute.training.parts import remembered, start, trained
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import CandidateError
from privacy_gate.weights.layout import Tensors

CLIPPED_BYTES = 256 << 20
"""Memory for per-example gradients that DP-SGD clips at once, in bytes."""

BUSY_FLOPS = 1e11
"""Floating-point operations per step that keep a GPU busy: they take milliseconds, as long as launching the step's
kernels."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Reference `index`: every tensor that its training changed, by name."""

    index: int
    tensors: Tensors


def shared_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the network that shares its tensors, for use by one thread.

    functional_call temporarily replaces a module's tensors, so threads must not share the module.
    """
    # deepcopy takes tensors that its memo already contains as they are.
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def stack_size(model: torch.nn.Module, recipe: Recipe, size: int, free: int) -> int:
    """Number of references to stack on a GPU with `free` bytes, for images of `size` x `size` pixels; at least 1.

    Stacks references until a step keeps the GPU busy; parameters, gradients and optimiser state must fit into a quarter
    of the memory. Activations are not included in the estimate.
    """
    first = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        shared_copy(model).eval()(first.new_zeros(1, 3, size, size))
    step = 3 * recipe.batch_size * counted.get_total_flops()  # the backward pass costs about two forward passes
    numbers = sum(model.get_parameter(name).numel() for name in trained(model, recipe))
    # 3: the parameters, the flat gradient, and torch.func's gradient by name.
    kept = numbers * first.element_size() * (3 + STATE[recipe.optimizer.name])
    return max(1, min(int(BUSY_FLOPS // max(1, step)), free // (4 * kept)))


def layout(model: torch.nn.Module, device: torch.device) -> torch.memory_format:
    """Memory format of the images of a network that is trained alone: channels last if that is faster.

    It is faster on GPUs for all convolutions, and on CPUs for depthwise ones: EfficientNet-B0 trains 1.6 times as fast,
    ResNets do not.
    """
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    depthwise = any(module.groups == module.in_channels > 1 for module in convolutions)
    pays = bool(convolutions) if device.type == "cuda" else depthwise
    return torch.channels_last if pays else torch.contiguous_format


class NetworkStack:
    """The trained parameters of M references as one (M, P) tensor, with a gradient of the same shape.

    All other tensors are shared with `model`, which several stacks may use.
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe, indices: Sequence[int]) -> None:
        self._model, self._indices = shared_copy(model), indices
        starts = [start(model, recipe, index) for index in indices]
        self._names, buffers = trained(model, recipe), remembered(model, recipe)
        self._shapes = [starts[0][name].shape for name in self._names]
        self._sizes = [starts[0][name].numel() for name in self._names]
        flat = [torch.cat([tensors[name].reshape(-1) for name in self._names]) for tensors in starts]
        self.parameters = torch.stack(flat)
        self.gradient = torch.zeros_like(self.parameters)
        self._buffers = {name: torch.stack([tensors[name] for tensors in starts]) for name in buffers}
        self._smoothing, self._half = recipe.label_smoothing, recipe.precision == "bfloat16"
        self._layout = layout(model, self.parameters.device)
        for parameter in model.parameters():
            parameter.requires_grad = False

    def differentiate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Sets the gradient of every reference's mean cross-entropy: x (M, B, 3, S, S), y (M, B).

        Raises CandidateError if a batch is too small for BatchNorm.
        """
        try:
            self._differentiate(x, y)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise CandidateError(
                f"recipe: BatchNorm cannot compute a variance from {x.shape[1]} example: choose a batch_size that "
                "leaves no batch of one"
            ) from error

    def _differentiate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        # A stack of one takes torch's plain path, with fused attention and its own memory format.
        if len(self._indices) == 1:
            parameters = {name: value[0].requires_grad_() for name, value in self._split(self.parameters.detach())}
            images = x[0].contiguous(memory_format=self._layout)
            loss = self._loss(parameters, {name: value[0] for name, value in self._buffers.items()}, images, y[0])
            parts = torch.autograd.grad(loss, list(parameters.values()))
            torch.cat([part.reshape(1, -1) for part in parts], dim=1, out=self.gradient)
            return
        stacked_grad: Callable[..., Any] = vmap(grad(self._loss), in_dims=(0, 0, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention does not support vmap, which would loop over it
            gradients = stacked_grad(dict(self._split(self.parameters)), self._buffers, x, y)
        torch.cat([gradients[name].flatten(1) for name in self._names], dim=1, out=self.gradient)

    def differentiate_clipped(self, x: torch.Tensor, y: torch.Tensor, present: torch.Tensor, clip: float) -> None:
        """Sets the sum of per-example gradients, each clipped to norm `clip`: Abadi et al. 2016 (arXiv 1607.00133).

        x (M, B, 3, S, S), y (M, B), present (M, 1, B): 1 for an example, 0 for padding. Processes as many examples at
        once as have gradients that fit into CLIPPED_BYTES, at least one.
        """
        self.gradient.zero_()
        some = max(1, CLIPPED_BYTES // self.parameters.nbytes)
        for first in range(0, x.shape[1], some):
            part = slice(first, first + some)
            gradients = self._per_example(x[:, part], y[:, part])
            # clip / max(norm, clip) is min(1, clip / norm).
            weight = present[:, :, part] * clip / gradients.norm(dim=2).unsqueeze(1).clamp(min=clip)
            self.gradient += torch.bmm(weight, gradients).squeeze(1)

    def _per_example(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The gradient of every example's cross-entropy, (M, B, P): x (M, B, 3, S, S), y (M, B)."""

        def loss(parameters: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self._loss(parameters, buffers, x.unsqueeze(0), y.unsqueeze(0))

        parts = []
        example_grad: Callable[..., Any] = vmap(grad(loss), in_dims=(None, None, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):
            if len(self._indices) == 1:
                parameters = {name: value[0] for name, value in self._split(self.parameters)}
                buffers = {name: value[0] for name, value in self._buffers.items()}
                gradients = example_grad(parameters, buffers, x[0], y[0])
                parts = [gradients[name].flatten(1).unsqueeze(0) for name in self._names]
            else:
                gradients = vmap(example_grad)(dict(self._split(self.parameters)), self._buffers, x, y)
                parts = [gradients[name].flatten(2) for name in self._names]
        return torch.cat(parts, dim=2)

    def _loss(self, parameters: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Autocast's cache would reuse one reference's bfloat16 weights for the next.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._half, cache_enabled=False):
            logits = functional_call(self._model, {**parameters, **buffers}, x)
        return cross_entropy(logits.to(x.dtype), y, label_smoothing=self._smoothing)

    def _split(self, flat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Views of flat (M, P), one per parameter, (M, *shape), by name."""
        for name, shape, part in zip(self._names, self._shapes, torch.split(flat, self._sizes, dim=1), strict=True):
            yield name, part.view(len(flat), *shape)

    def state(self) -> torch.Tensor:
        """Trained parameters and BatchNorm's running statistics of each reference, flat: (M, P + R)."""
        statistics = [value.flatten(1) for value in self._statistics().values()]
        return torch.cat([self.parameters, *statistics], dim=1)

    def load(self, state: torch.Tensor) -> None:
        """Overwrites parameters and running statistics with state (M, P + R), in the layout of `state`."""
        self.parameters.copy_(state[:, : self.parameters.shape[1]])
        first = self.parameters.shape[1]
        for value in self._statistics().values():
            size = value[0].numel()
            value.copy_(state[:, first : first + size].view_as(value))
            first += size

    def _statistics(self) -> Tensors:
        """Running means and variances, but not the integer count of batches: BatchNorm with a momentum ignores it."""
        return {name: value for name, value in self._buffers.items() if value.is_floating_point()}

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a stack of one, before a step, nats: x (1, B, 3, S, S), y (1, B)."""
        parameters = {name: value[0] for name, value in self._split(self.parameters)}
        # Buffers are cloned, because the forward pass updates running statistics in place.
        return self._loss(parameters, {name: value[0].clone() for name, value in self._buffers.items()}, x[0], y[0])

    def networks(self) -> list[TrainedNetwork]:
        """The current tensors of each reference, copied."""
        tensors = {**dict(self._split(self.parameters)), **self._buffers}
        return [
            TrainedNetwork(index, {name: value[place].clone() for name, value in tensors.items()})
            for place, index in enumerate(self._indices)
        ]
