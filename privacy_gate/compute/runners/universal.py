"""One change for all images that fools a model: Shafahi et al. 2018 (arXiv 1811.11304), with steps along the sign."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from privacy_gate.compute.runners.candidate_pixels import PixelModel

BATCH = 32
"""Images of a step. Another number gives another result, so it is no matter of the machine's."""

PART = 16
"""Of them, that go through the model at once: on a CPU sixteen take as long each as 32 do, eight a seventh longer."""

RATE = 0.1
"""Of the radius, that a step moves each pixel."""

CAP = 9.0
"""Where the cross entropy of a row stops counting, nats, so that rows already fooled do not take over: the paper's
clipped loss."""

RIDGE = 1e-2
"""Of the probe, in units of the features' mean square."""


def linear_probe(features: torch.Tensor, label: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A head on public features (R, D): weight (C, D) and bias (C,) float32, by ridge regression on labels (R,) in ±1.

    In closed form and in float64, so that it is the same everywhere.
    """
    wide = features.double()
    middle = wide.mean(0)
    away = wide - middle
    wanted = 2 * torch.nn.functional.one_hot(label, classes).double() - 1
    gram = away.T @ away
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(torch.float64).tiny)
    weight = torch.linalg.solve(gram, away.T @ (wanted - wanted.mean(0))).T
    bias = wanted.mean(0) - weight @ middle
    # Regression's outputs lie within about 1 of each other; as logits they would say that every class is likely.
    sharp = 1 / (wide @ weight.T + bias).std().clamp(min=1e-6)
    return (5 * sharp * weight).float(), (5 * sharp * bias).float()


def universal(
    model: PixelModel,
    images: torch.Tensor,
    label: torch.Tensor,
    radius: float,
    steps: int,
    threads: int = 1,
    stepped: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """A change (3, S, S), of `radius` at most in every pixel, that raises the loss of images (R, 3, S, S) in 0 .. 1.

    threads  that share each step, PART images each, and add up in the same order however many they are
    stepped  called after each step
    """
    change = torch.zeros_like(images[0])
    rng = np.random.default_rng([len(images), steps])
    order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-steps * BATCH // len(images)))])
    batches = torch.split(torch.from_numpy(order[: steps * BATCH]).to(images.device), BATCH)
    with ThreadPoolExecutor(threads) as pool:
        for rows in batches:
            slope = partial(_slope, model, images, label, change)
            gradient = torch.stack(list(pool.map(slope, torch.split(rows, PART)))).sum(0)
            change = (change + RATE * radius * gradient.sign()).clamp(-radius, radius)
            stepped()
    return change


def _slope(
    model: PixelModel, images: torch.Tensor, label: torch.Tensor, change: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Of the loss of these rows by the change, (3, S, S)."""
    leaf = change.detach().requires_grad_()
    with torch.enable_grad():
        logits = model((images[rows] + leaf).clamp(0, 1))
        loss = torch.nn.functional.cross_entropy(logits, label[rows], reduction="none").clamp(max=CAP)
        (gradient,) = torch.autograd.grad(loss.sum(), [leaf])
    return gradient


def sign_noise(size: int, *key: int) -> torch.Tensor:
    """-1 or 1 in every pixel, (3, S, S) float32, the same for the same key."""
    return torch.from_numpy(
        2 * np.random.default_rng([17, *key]).integers(0, 2, (3, size, size), dtype=np.int8) - 1.0
    ).float()
