"""A universal adversarial change, equal for all images: Shafahi et al. 2018 (arXiv 1811.11304), with signed steps."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from privacy_gate.compute.runners.candidate_pixels import PixelModel

BATCH = 32
"""Images per step. It affects results, so it is a constant and not a setting of the machine."""

PART = 16
"""Images of a step per forward pass. On a CPU, 16 take as long per image as 32, and 8 a seventh longer."""

RATE = 0.1
"""Step size of each pixel, as a share of the radius."""

CAP = 9.0
"""Upper limit of a row's cross-entropy, nats, so that rows that are already fooled do not dominate: the paper's clipped
loss."""

RIDGE = 1e-2
"""Ridge penalty of the probe, relative to the features' mean square."""


def linear_probe(features: torch.Tensor, label: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A head on public features (R, D): weight (C, D) and bias (C,) float32, by ridge regression on +-1 coded labels.

    label (R,). In closed form and in float64, so that the result is the same on every machine.
    """
    wide = features.double()
    middle = wide.mean(0)
    away = wide - middle
    coded = 2 * torch.nn.functional.one_hot(label, classes).double() - 1
    gram = away.T @ away
    # `tiny` keeps the matrix invertible if all features are equal.
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(torch.float64).tiny)
    weight = torch.linalg.solve(gram, away.T @ (coded - coded.mean(0))).T
    bias = coded.mean(0) - weight @ middle
    # Regression outputs differ by about 1; used as logits, they would make every class likely. Scale them up.
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
    """A change (3, S, S), at most `radius` in every pixel, that raises the loss of images (R, 3, S, S) in 0 .. 1.

    threads  number of threads that share each step, in parts of PART images; the order of the sum does not depend on it
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
    """Gradient of the summed loss of these rows with respect to the change, (3, S, S)."""
    leaf = change.detach().requires_grad_()
    with torch.enable_grad():
        logits = model((images[rows] + leaf).clamp(0, 1))
        loss = torch.nn.functional.cross_entropy(logits, label[rows], reduction="none").clamp(max=CAP)
        (gradient,) = torch.autograd.grad(loss.sum(), [leaf])
    return gradient


def sign_noise(size: int, *key: int) -> torch.Tensor:
    """Random -1 or 1 in every pixel, (3, S, S) float32; equal keys give equal noise."""
    # 17 separates these draws from those of other generators with the same key.
    return torch.from_numpy(
        2 * np.random.default_rng([17, *key]).integers(0, 2, (3, size, size), dtype=np.int8) - 1.0
    ).float()
