"""The slow twin of stacked training: one head, one torch.nn.Linear, one torch optimiser, autograd."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from privacy_gate.dossier.optimizers import Adam, AdamW, Optimizer, Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import initial_head, shown


def plain_loop(
    features: torch.Tensor, label: torch.Tensor, recipe: Recipe, index: int, rows: NDArray[np.int64]
) -> torch.nn.Linear:
    """Trains reference `index` on its rows alone, with the order of batches that is its own.

    Everything stays on the device of `features` (V * N, D), labels (V * N,), and in its dtype; batches are taken by
    indexing tensors, the fastest plain way there is.
    """
    head = torch.nn.Linear(features.shape[1], recipe.classes, device=features.device, dtype=features.dtype)
    with torch.no_grad():
        for parameter, initial in zip(
            head.parameters(), initial_head(index, recipe.classes, features.shape[1]), strict=True
        ):
            parameter.copy_(torch.from_numpy(initial) * (recipe.head.initial == "uniform"))
    optimizer = torch_optimizer(head, recipe.optimizer)
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
        seen = shown(index, epoch, rows, len(recipe.views), len(features) // len(recipe.views))
        order = torch.from_numpy(seen).to(features.device)
        for batch in torch.split(order, recipe.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(head(features[batch]), label[batch], label_smoothing=recipe.label_smoothing)
            torch.autograd.backward(loss)
            optimizer.step()
    return head


def torch_optimizer(head: torch.nn.Linear, settings: Optimizer) -> torch.optim.Optimizer:
    """torch's textbook form: unfused, one parameter after the other."""
    known = settings.model_dump(exclude={"name"})
    match settings:
        case Adam():
            return torch.optim.Adam(head.parameters(), foreach=False, **known)
        case AdamW():
            return torch.optim.AdamW(head.parameters(), foreach=False, **known)
        case Sgd():
            return torch.optim.SGD(head.parameters(), foreach=False, **known)
