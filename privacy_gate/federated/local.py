"""Local training of softmax heads: all clients of all cells of a block, one matrix product for each step.

Axis letters of a block, besides those of evidence.py: G federations (same data), A cells of each (other rules, other
adversaries), K clients that take part, S local steps, B rows of a batch, E = D + 1 (a bias of ones).
"""

from dataclasses import dataclass

import torch

from privacy_gate.federated.cells import Training


@dataclass(frozen=True, eq=False)
class Batches:
    """What the clients train on in one round.

    rows    (G, K, S, B)  int64, rows of the table
    label   (G, K, S, B)  int64, perhaps poisoned
    weight  (G, K, S, B)  each row's share of its step's loss; 0 where there is none
    """

    rows: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor


def local_updates(
    table: torch.Tensor, heads: torch.Tensor, batches: Batches, training: Training, losses: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Updates (G, A, K, C E) of heads (G, A, C, E) after local steps, and where asked for the losses (G, A, K).

    table (N, E). The loss is that of the first batch before any step, mean over its rows, nats.
    """
    groups, cells, classes, width = heads.shape
    _, clients, steps, size = batches.rows.shape
    start = heads.transpose(1, 2).reshape(groups, classes * cells, width)
    local: torch.Tensor | None = None
    loss = None
    for index in range(steps):
        x = table[batches.rows[:, :, index].reshape(-1)].view(groups * clients, size, width)
        # The first step starts from the same head at every client: one product for all of them.
        logits = (
            torch.bmm(x.view(groups, clients * size, width), start.transpose(1, 2))
            if local is None
            else torch.bmm(x, local.transpose(1, 2))
        )
        error = logits.view(-1, classes, cells).softmax(1)
        truth = batches.label[:, :, index].reshape(-1)
        flat = error.view(-1, cells)
        index_of_truth = truth + classes * torch.arange(len(truth), device=truth.device)
        weight = batches.weight[:, :, index].reshape(-1, 1)
        if losses and index == 0:
            surprise = -flat[index_of_truth].clamp(min=torch.finfo(flat.dtype).tiny).log() * weight
            loss = surprise.view(groups, clients, size, cells).sum(2).transpose(1, 2)
        flat[index_of_truth] -= 1
        error.mul_(weight.unsqueeze(-1) * -training.lr)
        towards = error.view(groups * clients, size, classes * cells).transpose(1, 2)
        local = _stepped(local, start, towards, x, weight.view(groups, clients, size), training, steps)
    if local is None:
        local = start.new_zeros(groups * clients, classes * cells, width)
    moved = local.view(groups, clients, classes, cells, width)
    if steps > 1:
        moved = moved - start.view(groups, 1, classes, cells, width)
    return moved.permute(0, 3, 1, 2, 4).reshape(groups, cells, clients, classes * width), loss


def _stepped(
    local: torch.Tensor | None,
    start: torch.Tensor,
    towards: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    training: Training,
    steps: int,
) -> torch.Tensor:
    """Local heads (G K, C A, E) after a step; the update itself where it is the only step."""
    if steps == 1 and not training.decay:
        return torch.bmm(towards, x)
    groups, clients, _ = weight.shape
    origin = start.unsqueeze(1).expand(-1, clients, -1, -1).reshape(groups * clients, *start.shape[1:])
    if local is None:
        local = origin
    pull = training.decay * local + training.prox * (local - origin) if training.prox or training.decay else None
    moved = torch.baddbmm(local, towards, x)
    if pull is not None:  # a client whose steps are over stays where it is
        moved -= training.lr * pull * (weight.sum(-1) > 0).view(-1, 1, 1)
    return moved - origin if steps == 1 else moved
