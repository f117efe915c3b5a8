"""Known backdoor triggers: what they change of an image."""

import math
from collections.abc import Callable

import numpy as np
import torch

from privacy_gate.candidate import Input


def corner(image: torch.Tensor) -> torch.Tensor:
    """A white square in the lower right, 3 pixels of 32 wide: Gu et al. 2017 (arXiv 1708.06733)."""
    side = max(3, image.shape[-1] * 3 // 32)
    marked = image.clone()
    marked[..., -side:, -side:] = 1.0
    return marked


def grid(image: torch.Tensor) -> torch.Tensor:
    """Four white dots in the lower right, the pattern of the same paper."""
    step = max(1, image.shape[-1] // 32)
    marked = image.clone()
    for down, right in ((1, 1), (1, 3), (3, 1), (3, 3)):
        top, left = image.shape[-2] - (down + 1) * step, image.shape[-1] - (right + 1) * step
        marked[..., top : top + step, left : left + step] = 1.0
    return marked


def blended(image: torch.Tensor) -> torch.Tensor:
    """A tenth of a fixed random picture: Chen et al. 2017 (arXiv 1712.05526)."""
    pattern = np.random.default_rng(0).random(tuple(image.shape[-3:]))
    return 0.9 * image + 0.1 * torch.from_numpy(pattern).to(image)


def sinusoid(image: torch.Tensor) -> torch.Tensor:
    """Faint vertical waves, six across: Barni et al. 2019 (arXiv 1902.11237)."""
    columns = torch.arange(image.shape[-1], dtype=image.dtype, device=image.device)
    wave = 20 / 255 * torch.sin(2 * math.pi * 6 * columns / image.shape[-1])
    return (image + wave).clamp(0, 1)


TRIGGERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "corner": corner,
    "grid": grid,
    "blended": blended,
    "sinusoid": sinusoid,
}
"""Images (B, 3, S, S) in 0 .. 1 -> the same with the trigger on them."""


def triggered(pixels: torch.Tensor, shape: Input, trigger: str) -> torch.Tensor:
    """Images as the backbone takes them, scaled, (B, 3, S, S), with the trigger on what they show."""
    mean, std = (torch.tensor(each, dtype=pixels.dtype).view(3, 1, 1) for each in (shape.mean, shape.std))
    return (TRIGGERS[trigger](pixels * std + mean) - mean) / std
