"""Networks trained side by side: one step of M references that share all but what they train."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from privacy_gate.candidate import Recipe
from privacy_gate.compute.backbone import Tensors
from privacy_gate.compute.parts import remembered, start, trained
from privacy_gate.errors import CandidateError

CLIPPED_BYTES = 256 << 20
"""What the gradients of single examples may take at once where DP-SGD cuts each of them."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Reference `index`: every tensor that its training changed, by name."""

    index: int
    tensors: Tensors


class NetworkStack:
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
            loss = self._loss(parameters, {name: value[0] for name, value in self._buffers.items()}, x[0], y[0])
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
        logits = functional_call(self._model, {**parameters, **buffers}, x)
        return cross_entropy(logits, y, label_smoothing=self._smoothing)

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
