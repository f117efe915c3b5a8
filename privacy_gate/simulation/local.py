"""Local training of softmax heads: all clients of all cells of a block, one matrix product per step.

On a CPU with Numba installed, native.client_steps does the same faster; results differ only by rounding.

Axis letters of a block, in addition to evidence.py: G federations that differ in data or seed, A cells of each that
share its data (with different rules and adversaries), K participating clients, S local steps, B rows of a batch,
E = D + 1 (a column of ones for the bias).
"""

import itertools
from dataclasses import dataclass, replace
from typing import Self

import torch

from privacy_gate.native.compiler import has_numba
from privacy_gate.simulation.cells import Training

STEP_BYTES = 1 << 21
"""Memory for logits and heads of clients trained at once on a CPU, in bytes: small enough to stay in its caches."""


@dataclass(frozen=True, eq=False)
class Batches:
    """The rows that clients train on in one round.

    rows    (G, K, S, B)  int64, row numbers in the table of features
    label   (G, K, S, B)  int64, possibly poisoned
    weight  (G, K, S, B)  each row's share of its step's loss; 0 for padding. A step without any weight leaves the
                          client's head unchanged
    """

    rows: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor

    def at(self, groups: slice, clients: slice) -> Self:
        """The batches of a slice of the federations (G) and a slice of their clients (K)."""
        chosen = groups, clients
        return replace(self, rows=self.rows[chosen], label=self.label[chosen], weight=self.weight[chosen])


def local_updates(
    table: torch.Tensor, heads: torch.Tensor, batches: Batches, training: Training, losses: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Updates (A, G, K, C E) that local steps make to heads (A, G, C, E); with `losses`, also the losses (A, G, K).

    table (N, E). The loss is the mean over the rows of the first batch before any step, in nats.
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
    # Cells of one federation train on the same rows: with classes and cells on one axis, one product serves all cells.
    start = heads.permute(1, 2, 0, 3).reshape(groups, classes * cells, width)
    updates = heads.new_empty(cells, groups, clients, classes, width)
    loss = heads.new_empty(cells, groups, clients) if losses else None
    some, few = groups, clients
    if heads.device.type == "cpu":
        per_client = classes * cells * (width + size) * heads.element_size()
        some, few = max(1, STEP_BYTES // max(1, per_client * clients)), max(1, STEP_BYTES // per_client)
    for first, begin in itertools.product(range(0, groups, some), range(0, clients, few)):
        part = slice(first, first + some), slice(begin, begin + few)
        change, first_loss = _train(table, start[part[0]], cells, batches.at(*part), training, losses)
        updates[:, *part] = change.permute(3, 0, 1, 2, 4)
        if loss is not None and first_loss is not None:
            loss[:, *part] = first_loss.permute(2, 0, 1)
    return updates.flatten(3), loss


def _train(
    table: torch.Tensor, start: torch.Tensor, cells: int, batches: Batches, training: Training, losses: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Updates (G, K, C, A, E) of heads (G, C A, E); with `losses`, also the losses (G, K, A) of the first batches."""
    groups, clients, steps, size = batches.rows.shape
    width = start.shape[-1]
    classes = start.shape[1] // cells
    origin = start.unsqueeze(1).expand(-1, clients, -1, -1)
    local, loss = origin, None
    for index in range(steps):
        x = table.index_select(0, batches.rows[:, :, index].reshape(-1)).view(groups * clients, size, width)
        # All clients start the first step from the same head, so one product serves them all.
        logits = (
            torch.bmm(x.view(groups, clients * size, width), start.transpose(1, 2))
            if index == 0
            else torch.bmm(x, local.reshape(groups * clients, -1, width).transpose(1, 2))
        )
        error = logits.view(-1, classes, cells).softmax(1)
        truth = batches.label[:, :, index].reshape(-1)
        weight = batches.weight[:, :, index].reshape(-1, 1)
        # The gradient of the loss by the logits is p - onehot(y): subtract 1 from each row's true class, in place.
        # `right` is a view of `error` in which class c of row i is line i C + c.
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
        if training.prox or training.decay:  # padding steps must not decay a client that has finished
            active = (batches.weight[:, :, index].sum(-1) > 0).view(groups, clients, 1, 1)
            step -= training.lr * (training.decay * local + training.prox * (local - origin)) * active
        if steps == 1:
            return step.view(groups, clients, classes, cells, width), loss
        local = local + step
    return (local - origin).view(groups, clients, classes, cells, width), loss
