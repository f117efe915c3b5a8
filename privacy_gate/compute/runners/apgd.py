"""Auto-PGD: gradient ascent within a ball of the largest norm, whose steps shrink by themselves.

Croce & Hein 2020 (arXiv 2003.01690), algorithm 1 and section 4.2. Steps go along the sign of the gradient, so neither
image nor model has to be scaled to them.
"""

import math
from collections.abc import Callable
from functools import cache

import torch

from privacy_gate.compute.runners.candidate_pixels import PixelModel, finite

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (B, C), a class for each row (B,) -> what the attack raises, (B,)."""

MOMENTUM = 0.75
"""alpha: how much of a step is the gradient's own; the rest is the step before."""

RISING = 0.75
"""rho: share of steps since the last checkpoint that must have raised the loss."""

RANKED, TINY = 4, 1e-12
"""Logits that the ratio looks at, the largest ones, and what it adds to their distance, which may be 0."""

FIRST, SHRINK, LEAST = 0.22, 0.03, 0.06
"""The first checkpoint, by how much the next distances shrink, and to what; shares of all steps."""


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Of the true class, nats, (B,): the untargeted attack's."""
    return torch.nn.functional.cross_entropy(logits, label, reduction="none")


def towards(target: torch.Tensor) -> Loss:
    """The targeted difference of logits ratio, target (B,): APGD-T's, Croce & Hein 2020, section 6.

    (z_target - z_label) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest logit. Of fewer than four classes there is no
    such ratio, and it is `ahead`.
    """
    difference = ahead(target)

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] < RANKED:
            return difference(logits, label)
        largest = logits.topk(RANKED, dim=1).values
        return difference(logits, label) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + TINY)

    return loss


def ahead(target: torch.Tensor) -> Loss:
    """The target's logit above the label's, target (B,)."""

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return _of(logits, target) - _of(logits, label)

    return loss


def apgd(
    model: PixelModel, x: torch.Tensor, label: torch.Tensor, loss: Loss, radius: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as near as `radius` to x in every pixel, and within 0 .. 1, that the model gets wrong if any is found.

    x (B, 3, S, S) in 0 .. 1, label (B,). Returns those images, (B, 3, S, S), and whether each is called another class
    than its label, (B,); where none was, the image of the highest loss. Each row's way is its own: no other row, nor
    the size of the batch, has a part in it, and it ends where the model is fooled. Raises CandidateError for logits
    that are not finite numbers.
    """
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)

    def within(moved: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum(moved, low), high)

    value, gradient, right = _probe(model, x, label, loss, torch.ones_like(label, dtype=torch.bool))
    fooled, found = ~right, x.clone()
    best, best_value, best_gradient = x.clone(), value.clone(), gradient
    step = torch.full_like(value, 2 * radius)
    before, here = x, x
    rising, halved, known = torch.zeros_like(value), torch.ones_like(fooled), best_value.clone()
    last = 0
    for turn in range(1, steps + 1):
        if bool(fooled.all()):
            break
        ahead = within(here + _wide(step) * gradient.sign())
        if turn > 1:
            ahead = within(here + MOMENTUM * (ahead - here) + (1 - MOMENTUM) * (here - before))
        before, here, old = here, ahead, value
        value, gradient, right = _probe(model, here, label, loss, ~fooled)
        found = torch.where(_wide(~right & ~fooled), here, found)
        fooled |= ~right
        rising += value > old
        better = value > best_value
        best, best_gradient = (
            torch.where(_wide(better), here, best),
            torch.where(_wide(better), gradient, best_gradient),
        )
        best_value = torch.where(better, value, best_value)
        if turn in _checkpoints(steps):
            stuck = (rising < RISING * (turn - last)) | (~halved & (best_value <= known))
            step = torch.where(stuck, step / 2, step)
            here, gradient = torch.where(_wide(stuck), best, here), torch.where(_wide(stuck), best_gradient, gradient)
            before, value = torch.where(_wide(stuck), here, before), torch.where(stuck, best_value, value)
            rising, halved, known, last = torch.zeros_like(value), stuck, best_value.clone(), turn
    return torch.where(_wide(fooled), found, best), fooled


@cache
def _checkpoints(steps: int) -> frozenset[int]:
    """The steps after which each row's step size is looked at."""
    found, before, here = [], 0.0, FIRST
    while here <= 1:
        found.append(math.ceil(round(here * steps, 6)))
        before, here = here, here + max(here - before - SHRINK, LEAST)
    return frozenset(found)


def _probe(
    model: PixelModel, x: torch.Tensor, label: torch.Tensor, loss: Loss, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss (B,), its gradient (B, 3, S, S), and whether the model is right (B,); of rows not `asked` (B,) 0, 0, False.

    x (B, 3, S, S), label (B,); at least one row is asked: the others cost nothing.
    """
    leaf = x[asked].detach().requires_grad_()
    with torch.enable_grad():
        found = finite(model(leaf))
        logits = found.new_zeros(len(x), found.shape[1]).index_put((asked,), found)
        value = loss(logits, label)[asked]
        (slope,) = torch.autograd.grad(value.sum(), [leaf])
    right, gradient = torch.zeros_like(asked), torch.zeros_like(x)
    right[asked], gradient[asked] = found.detach().argmax(1) == label[asked], slope
    return torch.zeros(len(x)).to(value).index_put((asked,), value.detach()), gradient, right


def _of(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, chosen.unsqueeze(1)).squeeze(1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
