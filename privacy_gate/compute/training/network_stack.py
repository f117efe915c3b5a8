"""Networks trained side by side: one step of M references that share all but what they train."""

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
"""What the gradients of single examples may take at once where DP-SGD cuts each of them."""

BUSY_FLOPS = 1e11
"""Floating-point operations of a step that keep a GPU busy: it takes milliseconds over them, as long as over starting
the step's kernels."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Reference `index`: every tensor that its training changed, by name."""

    index: int
    tensors: Tensors


def alike(model: torch.nn.Module) -> torch.nn.Module:
    """The same network on the very same tensors, for one thread.

    functional_call puts other tensors into a module for a while: threads must not share the module.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def stack_size(model: torch.nn.Module, recipe: Recipe, size: int, free: int) -> int:
    """How many references of so many pixels a side to stack on a GPU with `free` bytes: one where it fills the GPU.

    Small steps are stacked until they keep the GPU busy; parameters and all that the optimiser keeps beside them stay
    within a quarter of the memory. What activations take is not foreseen.
    """
    first = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        alike(model).eval()(first.new_zeros(1, 3, size, size))
    step = 3 * recipe.batch_size * counted.get_total_flops()  # forward once, backward about twice as much
    numbers = sum(model.get_parameter(name).numel() for name in trained(model, recipe))
    kept = numbers * first.element_size() * (3 + STATE[recipe.optimizer.name])  # a gradient as torch.func has it, too
    return max(1, min(int(BUSY_FLOPS // max(1, step)), free // (4 * kept)))


def layout(model: torch.nn.Module, device: torch.device) -> torch.memory_format:
    """How images of a network trained alone lie in memory: channels last where that pays.

    On GPUs for all convolutions; on CPUs for depthwise ones: EfficientNet-B0 is trained 1.6 times as fast, ResNets are
    not.
    """
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    depthwise = any(module.groups == module.in_channels > 1 for module in convolutions)
    pays = bool(convolutions) if device.type == "cuda" else depthwise
    return torch.channels_last if pays else torch.contiguous_format


class NetworkStack:
    """What M references train, laid out as one (M, P) tensor with its gradient beside it.

    What they do not train they share with `model`, which several stacks may have in common.
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe, indices: Sequence[int]) -> None:
        self._model, self._indices = alike(model), indices
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

        Raises CandidateError where a batch is too small for BatchNorm.
        """
        try:
            self._differentiate(x, y)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise CandidateError(
                f"recipe: BatchNorm cannot tell how {x.shape[1]} example of a batch varies: choose a batch_size that "
                "leaves no batch of one"
            ) from error

    def _differentiate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if len(self._indices) == 1:
            parameters = {name: value[0].requires_grad_() for name, value in self._split(self.parameters.detach())}
            shown = x[0].contiguous(memory_format=self._layout)
            loss = self._loss(parameters, {name: value[0] for name, value in self._buffers.items()}, shown, y[0])
            found = torch.autograd.grad(loss, list(parameters.values()))
            torch.cat([part.reshape(1, -1) for part in found], dim=1, out=self.gradient)
            return
        each: Callable[..., Any] = vmap(grad(self._loss), in_dims=(0, 0, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention knows no stacks: vmap would loop over it
            gradients = each(dict(self._split(self.parameters)), self._buffers, x, y)
        torch.cat([gradients[name].flatten(1) for name in self._names], dim=1, out=self.gradient)

    def differentiate_clipped(self, x: torch.Tensor, y: torch.Tensor, present: torch.Tensor, clip: float) -> None:
        """Sets the sum of single examples' gradients, each cut to norm `clip`: Abadi et al. 2016 (arXiv 1607.00133).

        x (M, B, 3, S, S), y (M, B), present (M, 1, B), 1 where there is an example and 0 where there is none. So many
        examples are taken at once that their gradients fit into CLIPPED_BYTES, one at least.
        """
        self.gradient.zero_()
        some = max(1, CLIPPED_BYTES // self.parameters.nbytes)
        for first in range(0, x.shape[1], some):
            part = slice(first, first + some)
            gradients = self._of_each(x[:, part], y[:, part])
            weight = present[:, :, part] * clip / gradients.norm(dim=2).unsqueeze(1).clamp(min=clip)
            self.gradient += torch.bmm(weight, gradients).squeeze(1)

    def _of_each(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The gradient of every example's cross-entropy, (M, B, P)."""

        def loss(parameters: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self._loss(parameters, buffers, x.unsqueeze(0), y.unsqueeze(0))

        found = []
        each: Callable[..., Any] = vmap(grad(loss), in_dims=(None, None, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):
            if len(self._indices) == 1:
                parameters = {name: value[0] for name, value in self._split(self.parameters)}
                gradients = each(parameters, {name: value[0] for name, value in self._buffers.items()}, x[0], y[0])
                found = [gradients[name].flatten(1).unsqueeze(0) for name in self._names]
            else:
                gradients = vmap(each)(dict(self._split(self.parameters)), self._buffers, x, y)
                found = [gradients[name].flatten(2) for name in self._names]
        return torch.cat(found, dim=2)

    def _loss(self, parameters: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The cache of autocast would keep one reference's cut weights for the next.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._half, cache_enabled=False):
            logits = functional_call(self._model, {**parameters, **buffers}, x)
        return cross_entropy(logits.to(x.dtype), y, label_smoothing=self._smoothing)

    def _split(self, flat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Views of (M, P), each (M, *shape), by name."""
        for name, shape, part in zip(self._names, self._shapes, torch.split(flat, self._sizes, dim=1), strict=True):
            yield name, part.view(len(flat), *shape)

    def state(self) -> torch.Tensor:
        """What each reference trains, and what its BatchNorm remembers, flat: (M, P + R)."""
        kept = [value.flatten(1) for value in self._remembered().values()]
        return torch.cat([self.parameters, *kept], dim=1)

    def load(self, state: torch.Tensor) -> None:
        """Puts (M, P + R) in the place of what is there."""
        self.parameters.copy_(state[:, : self.parameters.shape[1]])
        first = self.parameters.shape[1]
        for value in self._remembered().values():
            size = value[0].numel()
            value.copy_(state[:, first : first + size].view_as(value))
            first += size

    def _remembered(self) -> Tensors:
        """Running statistics; how many batches they are of changes nothing where BatchNorm has a momentum."""
        return {name: value for name, value in self._buffers.items() if value.is_floating_point()}

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a stack of one, before a step, nats: x (1, B, 3, S, S), y (1, B)."""
        parameters = {name: value[0] for name, value in self._split(self.parameters)}
        return self._loss(parameters, {name: value[0].clone() for name, value in self._buffers.items()}, x[0], y[0])

    def networks(self) -> list[TrainedNetwork]:
        """The references as they are now."""
        tensors = {**dict(self._split(self.parameters)), **self._buffers}
        return [
            TrainedNetwork(index, {name: value[place].clone() for name, value in tensors.items()})
            for place, index in enumerate(self._indices)
        ]
