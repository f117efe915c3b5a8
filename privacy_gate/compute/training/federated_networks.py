"""Networks as what the clients of a federation train, where the recipe trains more than a head.

A model is everything that training changes, flat: parameters, then BatchNorm's running statistics. A server that joined
the parameters alone would serve a network whose statistics belong to other weights.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.network_stack import NetworkStack, TrainedNetwork, alike
from privacy_gate.compute.training.networks import Images
from privacy_gate.compute.training.parts import network
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches
from privacy_gate.simulation.partitions import Rows
from privacy_gate.simulation.scores import right


@dataclass(frozen=True, eq=False)
class Roll:
    """Which rows of the table are what.

    train, test, own  rows that clients hold, that models are judged by, and the server's own
    """

    train: Rows
    test: Rows
    own: Rows


class NetworkLearner:
    """Networks of one recipe: see federated.learner.Learner. No backdoor is planted in them."""

    triggered = None

    def __init__(
        self,
        recipe: Recipe,
        images: Images,
        label: NDArray[np.int64],
        roll: Roll,
        machine: Machine,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._recipe, self._images, self._truth, self._roll, self._machine = recipe, images, label, roll, machine
        self.device, self.dtype, self.classes = machine.torch_device(), dtype, recipe.classes
        self._places = np.concatenate([roll.train, roll.own])
        self.label = label[self._places].astype(np.int64)
        self.root = np.arange(len(roll.train), len(self._places))
        self._model = network(recipe).to(self.device, dtype)
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(machine.computing_threads())
        self.width = self._stack().state().shape[1]

    def start(self, seeds: Sequence[int]) -> torch.Tensor:
        """As a reference of that index starts: (cells, P)."""
        return torch.cat([NetworkStack(self._model, self._recipe, [seed]).state() for seed in seeds])

    def updates(
        self, models: torch.Tensor, batches: Batches, training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(A, G, K, P) and (A, G, K). Every thread of a CPU trains a client of its own."""
        shape = (*models.shape[:2], batches.rows.shape[1])
        places = list(product(*map(range, shape)))
        with torch.inference_mode(False):
            starts = models.clone()
            updates, loss = starts.new_empty(*shape, self.width), starts.new_empty(shape)
            drawn = [each.clone() for each in (batches.rows, batches.label, batches.weight)]

        def train(place: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            return self._train(starts[place[:2]], [each[place[1:]] for each in drawn], training, losses)

        for place, (update, surprise) in zip(places, self._pool.map(train, places), strict=True):
            updates[place], loss[place] = update, surprise
        return updates, loss if losses else None

    def _train(
        self, start: torch.Tensor, batches: Sequence[torch.Tensor], training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What one client's steps change of `start` (P,), and the loss of its first batch, 0 where nobody asks.

        batches: rows, label and weight (S, B).
        """
        stack = self._stack()
        stack.load(start.unsqueeze(0))
        origin, loss = stack.parameters.clone(), start.new_zeros(())
        for step, (rows, label, weight) in enumerate(zip(*batches, strict=True)):
            there = weight > 0
            if not there.any():
                break  # a client whose steps are over stays where it is
            places = self._places[rows[there].cpu().numpy()]
            x = self._images.take(places, self.device, self.dtype).unsqueeze(0)
            y = label[there].unsqueeze(0)
            if step == 0 and losses:
                loss = stack.loss(x, y).detach()
            stack.differentiate(x, y)
            towards = stack.gradient + training.decay * stack.parameters + training.prox * (stack.parameters - origin)
            stack.parameters -= training.lr * towards
        return stack.state()[0] - start, loss

    def _stack(self) -> NetworkStack:
        """This thread's own network in training."""
        if not hasattr(self._own, "stack"):
            with torch.inference_mode(False):
                self._own.stack = NetworkStack(self._model, self._recipe, [0])
                self._own.judge = alike(self._model).eval()
        stack: NetworkStack = self._own.stack
        return stack

    def network(self, model: torch.Tensor, index: int) -> TrainedNetwork:
        """The model (P,) as tensors by name."""
        stack = self._stack()
        stack.load(model.unsqueeze(0))
        return TrainedNetwork(index, stack.networks()[0].tensors)

    def hits(self, models: torch.Tensor) -> torch.Tensor:
        """(T, cells): see federated.scores.right."""
        truth = torch.from_numpy(self._truth[self._roll.test]).to(self.device)
        return torch.cat([right(self._logits(model).unsqueeze(2), truth) for model in models], dim=1)

    def _logits(self, model: torch.Tensor) -> torch.Tensor:
        tensors, size = self.network(model, 0).tensors, self._machine.images(self._images.pixels.shape[-1])
        parts = [self._roll.test[first : first + size] for first in range(0, len(self._roll.test), size)]
        shown = (self._images.take(rows, self.device, self.dtype) for rows in parts)
        return torch.cat([functional_call(self._own.judge, tensors, x) for x in shown])

    def backdoor(self, models: torch.Tensor, target: int) -> torch.Tensor | None:
        """None."""
        return None
