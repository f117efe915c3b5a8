"""The recipe's optimiser as torch's own, in its fused form: one pass over parameters and state."""

from typing import assert_never

import torch

from privacy_gate.candidate import Adam, AdamW, Optimizer, Sgd

STATE = {"adam": 2, "adamw": 2, "sgd": 1}
"""Numbers kept per parameter beside itself and its gradient, at most."""


def optimizer(parameters: torch.Tensor, settings: Optimizer) -> torch.optim.Optimizer:
    """torch.optim's optimiser over one flat tensor, whose `.grad` the caller fills in place.

    All updates are elementwise, so stacked models stay independent of each other.
    """
    match settings:
        case Adam():
            return torch.optim.Adam(
                [parameters],
                lr=settings.lr,
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        case AdamW():
            return torch.optim.AdamW(
                [parameters],
                lr=settings.lr,
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        case Sgd():
            return torch.optim.SGD(
                [parameters],
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
                fused=True,
            )
    assert_never(settings)


def set_learning_rate(chosen: torch.optim.Optimizer, lr: float) -> None:
    """What the schedule decides at the start of an epoch."""
    for group in chosen.param_groups:
        group["lr"] = lr
