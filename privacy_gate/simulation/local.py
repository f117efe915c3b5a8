"""Local training of softmax heads: all clients of all cells of a block, one matrix product for each step.

On a CPU, where Numba is installed, `fused` does the same, faster; the results differ by rounding alone.

Axis letters of a block, besides those of evidence.py: G federations (same data), A cells of each (other rules, other
adversaries), K clients that take part, S local steps, B rows of a batch, E = D + 1 (a bias of ones).
"""

import itertools
from dataclasses import dataclass, replace
from typing import Self

import torch

from privacy_gate.native.compiler import has_numba
from privacy_gate.simulation.cells import Training

STEP_BYTES = 1 << 21
"""What logits and heads of the clients trained at once may take on a CPU: little enough to stay in its caches."""


@dataclass(frozen=True, eq=False)
class Batches:
    """What the clients train on in one round.

    rows    (G, K, S, B)  int64, rows of the table
    label   (G, K, S, B)  int64, perhaps poisoned
    weight  (G, K, S, B)  each row's share of its step's loss; 0 where there is none. A client without any stays where
                          it is
    """

    rows: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor

    def at(self, groups: slice, clients: slice) -> Self:
        """Those of some of the clients of some of the federations."""
        chosen = groups, clients
        return replace(self, rows=self.rows[chosen], label=self.label[chosen], weight=self.weight[chosen])


def local_updates(
    table: torch.Tensor, heads: torch.Tensor, batches: Batches, training: Training, losses: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Updates (A, G, K, C E) of heads (A, G, C, E) after local steps, and where asked for the losses (A, G, K).

    table (N, E). The loss is that of the first batch before any step, mean over its rows, nats.
    """
    if heads.device.type == "cpu" and has_numba():
        from privacy_gate.native import client_steps as fused  # noqa: PLC0415 - Numba is an extra, and slow to import

        settings = (training.lr, training.decay, training.prox)
        return fused.local_updates(table, heads, batches.rows, batches.label, batches.weight, settings, losses)
    return stacked_updates(table, heads, batches, training, losses)


def stacked_updates(
    table: torch.Tensor, heads: torch.Tensor, batches: Batches, training: Training, losses: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`local_updates` by torch, on any device."""
    cells, groups, classes, width = heads.shape
    clients, size = batches.rows.shape[1], batches.rows.shape[3]
    start = heads.permute(1, 2, 0, 3).reshape(groups, classes * cells, width)
    updates = heads.new_empty(cells, groups, clients, classes, width)
    loss = heads.new_empty(cells, groups, clients) if losses else None
    some, few = groups, clients
    if heads.device.type == "cpu":
        each = classes * cells * (width + size) * heads.element_size()
        some, few = max(1, STEP_BYTES // max(1, each * clients)), max(1, STEP_BYTES // each)
    for first, begin in itertools.product(range(0, groups, some), range(0, clients, few)):
        part = slice(first, first + some), slice(begin, begin + few)
        moved, surprise = _train(table, start[part[0]], cells, batches.at(*part), training, losses)
        updates[:, *part] = moved.permute(3, 0, 1, 2, 4)
        if loss is not None and surprise is not None:
            loss[:, *part] = surprise.permute(2, 0, 1)
    return updates.flatten(3), loss


def _train(
    table: torch.Tensor, start: torch.Tensor, cells: int, batches: Batches, training: Training, losses: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Updates (G, K, C, A, E) from heads (G, C A, E), and where asked for the losses (G, K, A) of the first batches."""
    groups, clients, steps, size = batches.rows.shape
    width = start.shape[-1]
    classes = start.shape[1] // cells
    origin = start.unsqueeze(1).expand(-1, clients, -1, -1)
    local, loss = origin, None
    for index in range(steps):
        x = table.index_select(0, batches.rows[:, :, index].reshape(-1)).view(groups * clients, size, width)
        # The first step starts from the same head at every client: one product for all of them.
        logits = (
            torch.bmm(x.view(groups, clients * size, width), start.transpose(1, 2))
            if index == 0
            else torch.bmm(x, local.reshape(groups * clients, -1, width).transpose(1, 2))
        )
        error = logits.view(-1, classes, cells).softmax(1)
        truth = batches.label[:, :, index].reshape(-1)
        weight = batches.weight[:, :, index].reshape(-1, 1)
        right = error.view(-1, cells)
        true = truth + classes * torch.arange(len(truth), device=truth.device)
        p = right[true]
        if losses and index == 0:
            surprise = -p.clamp(min=torch.finfo(p.dtype).tiny).log() * weight
            loss = surprise.view(groups, clients, size, cells).sum(2)
        right[true] = p - 1
        error.mul_(weight.unsqueeze(-1) * -training.lr)
        towards = error.view(groups * clients, size, classes * cells).transpose(1, 2)
        step = torch.bmm(towards, x).view(groups, clients, classes * cells, width)
        if training.prox or training.decay:  # a client whose steps are over stays where it is
            active = (batches.weight[:, :, index].sum(-1) > 0).view(groups, clients, 1, 1)
            step -= training.lr * (training.decay * local + training.prox * (local - origin)) * active
        if steps == 1:
            return step.view(groups, clients, classes, cells, width), loss
        local = local + step
    return (local - origin).view(groups, clients, classes, cells, width), loss
