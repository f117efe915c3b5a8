"""Auto-PGD: projected gradient ascent in an L-infinity ball, with automatic step sizes.

Croce & Hein 2020 (arXiv 2003.01690), algorithm 1 and section 4.2. Steps follow the sign of the gradient, so results do
not depend on the scale of the loss.
"""

import math
from collections.abc import Callable
from functools import cache

import torch

from privacy_gate.compute.runners.candidate_pixels import PixelModel, finite

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (B, C) and the label of each row (B,) -> the loss that the attack maximises, (B,)."""

MOMENTUM = 0.75
"""alpha in the paper: weight of the gradient step; the previous step has weight 1 - alpha."""

RISING = 0.75
"""rho in the paper: share of steps since the last checkpoint that must have raised the loss."""

RANKED, TINY = 4, 1e-12
"""Number of largest logits in the ratio loss, and the constant added to its denominator, which may be 0."""

FIRST, SHRINK, LEAST = 0.22, 0.03, 0.06
"""First checkpoint, decrease of the distance between checkpoints, and its minimum; as shares of all steps."""


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the true class, nats, (B,): the loss of the untargeted attack."""
    return torch.nn.functional.cross_entropy(logits, label, reduction="none")


def towards(target: torch.Tensor) -> Loss:
    """The targeted difference of logits ratio (DLR) of APGD-T, target (B,): Croce & Hein 2020, section 6.

    (z_target - z_label) / (z_1 - (z_3 + z_4) / 2), with z_k the k-th largest logit. With fewer than four classes the
    ratio is undefined, and the loss is `ahead`.
    """
    difference = ahead(target)

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] < RANKED:
            return difference(logits, label)
        largest = logits.topk(RANKED, dim=1).values
        return difference(logits, label) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + TINY)

    return loss


def ahead(target: torch.Tensor) -> Loss:
    """The loss z_target - z_label, target (B,)."""

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return _of(logits, target) - _of(logits, label)

    return loss


def apgd(
    model: PixelModel, x: torch.Tensor, label: torch.Tensor, loss: Loss, radius: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Searches for images within `radius` of x in every pixel, and within 0 .. 1, that the model misclassifies.

    x (B, 3, S, S) in 0 .. 1, label (B,). Returns images (B, 3, S, S), and whether the model is fooled by each, (B,);
    for a row without success, the image with the highest loss. The search of a row does not depend on other rows or on
    the batch size, and ends once the model is fooled. Raises CandidateError if logits are not finite.
    """
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)

    def within(moved: torch.Tensor) -> torch.Tensor:
        """Projects onto the ball around x and the range of pixels."""
        return torch.minimum(torch.maximum(moved, low), high)

    value, gradient, right = _probe(model, x, label, loss, torch.ones_like(label, dtype=torch.bool))
    fooled, adversarial = ~right, x.clone()
    best, best_value, best_gradient = x.clone(), value.clone(), gradient
    step = torch.full_like(value, 2 * radius)
    before, here = x, x
    # Since the last checkpoint: steps that raised the loss, whether the step was halved then, and the best loss then.
    rising, halved, known = torch.zeros_like(value), torch.ones_like(fooled), best_value.clone()
    last = 0
    for turn in range(1, steps + 1):
        if bool(fooled.all()):
            break
        moved = within(here + _wide(step) * gradient.sign())
        if turn > 1:
            moved = within(here + MOMENTUM * (moved - here) + (1 - MOMENTUM) * (here - before))
        before, here, old = here, moved, value
        # Rows that are fooled are not evaluated any more: their loss and gradient are 0.
        value, gradient, right = _probe(model, here, label, loss, ~fooled)
        adversarial = torch.where(_wide(~right & ~fooled), here, adversarial)
        fooled |= ~right
        rising += value > old
        better = value > best_value
        best, best_gradient = (
            torch.where(_wide(better), here, best),
            torch.where(_wide(better), gradient, best_gradient),
        )
        best_value = torch.where(better, value, best_value)
        if turn in _checkpoints(steps):
            # Halve the step and restart from the best image if progress stalls: conditions 1 and 2 of the paper.
            stuck = (rising < RISING * (turn - last)) | (~halved & (best_value <= known))
            step = torch.where(stuck, step / 2, step)
            here, gradient = torch.where(_wide(stuck), best, here), torch.where(_wide(stuck), best_gradient, gradient)
            before, value = torch.where(_wide(stuck), here, before), torch.where(stuck, best_value, value)
            rising, halved, known, last = torch.zeros_like(value), stuck, best_value.clone(), turn
    return torch.where(_wide(fooled), adversarial, best), fooled


@cache
def _checkpoints(steps: int) -> frozenset[int]:
    """The steps after which the step size of each row may be halved."""
    checkpoints, before, here = [], 0.0, FIRST
    while here <= 1:
        checkpoints.append(math.ceil(round(here * steps, 6)))  # rounded, so that float errors cannot raise the ceiling
        before, here = here, here + max(here - before - SHRINK, LEAST)
    return frozenset(checkpoints)


def _probe(
    model: PixelModel, x: torch.Tensor, label: torch.Tensor, loss: Loss, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss (B,), its gradient (B, 3, S, S), and whether the model is right (B,).

    x (B, 3, S, S), label (B,). Rows not `asked` (B,) are not computed, and get 0, 0 and False; at least one row must be
    asked.
    """
    leaf = x[asked].detach().requires_grad_()
    with torch.enable_grad():
        answers = finite(model(leaf))
        # `loss` holds targets for all B rows, so the logits are put back in their places.
        logits = answers.new_zeros(len(x), answers.shape[1]).index_put((asked,), answers)
        value = loss(logits, label)[asked]
        (slope,) = torch.autograd.grad(value.sum(), [leaf])
    right, gradient = torch.zeros_like(asked), torch.zeros_like(x)
    right[asked], gradient[asked] = answers.detach().argmax(1) == label[asked], slope
    return torch.zeros(len(x)).to(value).index_put((asked,), value.detach()), gradient, right


def _of(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The logit of each row's chosen class: logits (B, C), chosen (B,); (B,)."""
    return logits.gather(1, chosen.unsqueeze(1)).squeeze(1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Values (B,) as (B, 1, 1, 1), to broadcast over images."""
    return values.view(-1, 1, 1, 1)
