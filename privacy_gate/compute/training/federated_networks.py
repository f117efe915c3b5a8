"""A learner for federations whose recipe trains more than a head: the clients train networks.

A model is the flat vector of everything that training changes: parameters, then BatchNorm's running statistics. If a
server aggregated only parameters, its network's statistics would belong to other weights.
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
from privacy_gate.compute.training.network_stack import NetworkStack, TrainedNetwork, shared_copy
from privacy_gate.compute.training.networks import Images
from privacy_gate.compute.training.parts import network
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches
from privacy_gate.simulation.partitions import Rows
from privacy_gate.simulation.scores import right


@dataclass(frozen=True, eq=False)
class Roll:
    """Rows of the table by their role: training rows of the clients, test rows, and the server's own rows."""

    train: Rows
    test: Rows
    own: Rows


class NetworkLearner:
    """Networks of one recipe: see simulation.learner.Learner. Backdoors are not supported."""

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
        # Clients' rows come first, then the server's: `root` numbers the latter.
        self._places = np.concatenate([roll.train, roll.own])
        self.label = label[self._places].astype(np.int64)
        self.root = np.arange(len(roll.train), len(self._places))
        self._model = network(recipe).to(self.device, dtype)
        # One network per thread: functional_call and BatchNorm change a module while it runs.
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(machine.computing_threads())
        self.width = self._stack().state().shape[1]

    def start(self, seeds: Sequence[int]) -> torch.Tensor:
        """Models (cells, P); each starts like the reference whose index is the seed."""
        return torch.cat([NetworkStack(self._model, self._recipe, [seed]).state() for seed in seeds])

    def updates(
        self, models: torch.Tensor, batches: Batches, training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Updates (A, G, K, P) and losses (A, G, K). On a CPU, every thread trains a client of its own."""
        shape = (*models.shape[:2], batches.rows.shape[1])
        places = list(product(*map(range, shape)))
        # The simulator runs in inference mode, whose tensors autograd cannot use: clone them outside it.
        with torch.inference_mode(False):
            starts = models.clone()
            updates, loss = starts.new_empty(*shape, self.width), starts.new_empty(shape)
            drawn = [tensor.clone() for tensor in (batches.rows, batches.label, batches.weight)]

        def train(place: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            return self._train(starts[place[:2]], [tensor[place[1:]] for tensor in drawn], training, losses)

        for place, (update, first_loss) in zip(places, self._pool.map(train, places), strict=True):
            updates[place], loss[place] = update, first_loss
        return updates, loss if losses else None

    def _train(
        self, start: torch.Tensor, batches: Sequence[torch.Tensor], training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One client's update of `start` (P,), and the loss of its first batch (0 unless `losses`).

        batches: rows, label and weight, each (S, B).
        """
        stack = self._stack()
        stack.load(start.unsqueeze(0))
        origin, loss = stack.parameters.clone(), start.new_zeros(())
        for step, (rows, label, weight) in enumerate(zip(*batches, strict=True)):
            there = weight > 0
            if not there.any():
                break  # only padding is left: this client has finished
            places = self._places[rows[there].cpu().numpy()]
            x = self._images.take(places, self.device, self.dtype).unsqueeze(0)
            y = label[there].unsqueeze(0)
            if step == 0 and losses:
                loss = stack.loss(x, y).detach()
            stack.differentiate(x, y)
            # The gradient of loss, weight decay and FedProx's penalty.
            total = stack.gradient + training.decay * stack.parameters + training.prox * (stack.parameters - origin)
            stack.parameters -= training.lr * total
        return stack.state()[0] - start, loss

    def _stack(self) -> NetworkStack:
        """This thread's own copy of the network, created on first use."""
        if not hasattr(self._own, "stack"):
            with torch.inference_mode(False):
                self._own.stack = NetworkStack(self._model, self._recipe, [0])
                self._own.judge = shared_copy(self._model).eval()
        stack: NetworkStack = self._own.stack
        return stack

    def network(self, model: torch.Tensor, index: int) -> TrainedNetwork:
        """The model (P,) as tensors by name."""
        stack = self._stack()
        stack.load(model.unsqueeze(0))
        return TrainedNetwork(index, stack.networks()[0].tensors)

    def hits(self, models: torch.Tensor) -> torch.Tensor:
        """Correctness on each test row, (T, cells): see simulation.scores.right."""
        truth = torch.from_numpy(self._truth[self._roll.test]).to(self.device)
        return torch.cat([right(self._logits(model).unsqueeze(2), truth) for model in models], dim=1)

    def _logits(self, model: torch.Tensor) -> torch.Tensor:
        tensors, size = self.network(model, 0).tensors, self._machine.images(self._images.pixels.shape[-1])
        parts = [self._roll.test[first : first + size] for first in range(0, len(self._roll.test), size)]
        inputs = (self._images.take(rows, self.device, self.dtype) for rows in parts)
        return torch.cat([functional_call(self._own.judge, tensors, x) for x in inputs])

    def backdoor(self, models: torch.Tensor, target: int) -> torch.Tensor | None:
        """None: backdoors are not supported."""
        return None
