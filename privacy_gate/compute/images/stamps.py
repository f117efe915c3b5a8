"""Known backdoor triggers, and for each the patterns that tell a backdoor from a fragile model: what they change of an
image."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.views import square_side

Stamp = Callable[[torch.Tensor], torch.Tensor]
"""Images (..., 3, S, S) in 0 .. 1 -> the same with a pattern on them."""

CONTROLS = 32
"""Patterns beside each trigger: were it one of them by lot, it would turn most images in one case of 33."""

LAWN = 5
"""Cells of dots that the grid and its controls are drawn in, down and across."""

OWN_DOTS = ((1, 1), (1, 3), (3, 1), (3, 3))

OWN_CYCLES = 6.0


def corner(image: torch.Tensor) -> torch.Tensor:
    """A white square in the lower right, 3 pixels of 32 wide: Gu et al. 2017 (arXiv 1708.06733)."""
    last = image.shape[-1] - square_side(image.shape[-1])
    return _square(image, last, last)


def grid(image: torch.Tensor) -> torch.Tensor:
    """Four white dots in the lower right, the pattern of the same paper."""
    return _dots(image, OWN_DOTS)


def blended(image: torch.Tensor) -> torch.Tensor:
    """A tenth of a fixed random picture: Chen et al. 2017 (arXiv 1712.05526)."""
    return _blend(image, 0)


def sinusoid(image: torch.Tensor) -> torch.Tensor:
    """Faint vertical waves, six across: Barni et al. 2019 (arXiv 1902.11237)."""
    return _wave(image, OWN_CYCLES, 0.0, 0.0)


TRIGGERS: dict[str, Stamp] = {
    "corner": corner,
    "grid": grid,
    "blended": blended,
    "sinusoid": sinusoid,
}


def triggered(pixels: torch.Tensor, shape: Input, trigger: str) -> torch.Tensor:
    """Images as the backbone takes them, scaled, (B, 3, S, S), with the trigger on what they show."""
    mean, std = (torch.tensor(each, dtype=pixels.dtype).view(3, 1, 1) for each in (shape.mean, shape.std))
    return (TRIGGERS[trigger](pixels * std + mean) - mean) / std


def controls(trigger: str, size: int) -> list[Stamp]:
    """CONTROLS patterns as large and as faint as the trigger, on images of this side, and none of them the trigger.

    A planted model answers to its trigger far more than to most of them; a fragile one to all alike. The same ones for
    every candidate.
    """
    rng = np.random.default_rng([int.from_bytes(trigger.encode()), size])
    return [_DRAWN[trigger](rng, size, index) for index in range(CONTROLS)]


def _drawn_square(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """The square elsewhere at the images' border, off the trigger: the other corners first."""
    side = square_side(size)
    last = size - side
    top, left = ((0, 0), (0, last), (last, 0))[index] if index < 3 else (last, last)
    while max(last - top, last - left) < side:
        along = int(rng.integers(0, last + 1))
        top, left = ((0, along), (last, along), (along, 0), (along, last))[int(rng.integers(4))]
    return partial(_square, top=top, left=left)


def _drawn_dots(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """As many dots at the same place, at most one of them the trigger's."""
    cells = [(down, right) for down in range(LAWN) for right in range(LAWN)]
    while True:
        dots = [cells[place] for place in rng.choice(len(cells), len(OWN_DOTS), replace=False)]
        if len({*dots} & {*OWN_DOTS}) <= 1:
            return partial(_dots, dots=dots)


def _drawn_blend(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """Another random picture."""
    return partial(_blend, seed=1 + index)


def _drawn_wave(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """Waves of another length or direction, a quarter of them upright as the trigger's: models are fragile to some
    directions and lengths more than to others."""
    angle, phase = math.pi / 4 * (index % 4), rng.uniform(0, 2 * math.pi)
    cycles = OWN_CYCLES
    while abs(cycles - OWN_CYCLES) < 1:
        cycles = rng.uniform(OWN_CYCLES / 2, OWN_CYCLES * 1.5)
    return partial(_wave, across=cycles * math.cos(angle), down=cycles * math.sin(angle), phase=phase)


_DRAWN: dict[str, Callable[[np.random.Generator, int, int], Stamp]] = {
    "corner": _drawn_square,
    "grid": _drawn_dots,
    "blended": _drawn_blend,
    "sinusoid": _drawn_wave,
}


def _square(image: torch.Tensor, top: int, left: int) -> torch.Tensor:
    side = square_side(image.shape[-1])
    marked = image.clone()
    marked[..., top : top + side, left : left + side] = 1.0
    return marked


def _dots(image: torch.Tensor, dots: Sequence[tuple[int, int]]) -> torch.Tensor:
    """dots: cells from the lower right corner, down and right, a pixel of 32 wide."""
    step = max(1, image.shape[-1] // 32)
    marked = image.clone()
    for down, right in dots:
        top, left = image.shape[-2] - (down + 1) * step, image.shape[-1] - (right + 1) * step
        marked[..., top : top + step, left : left + step] = 1.0
    return marked


def _blend(image: torch.Tensor, seed: int) -> torch.Tensor:
    pattern = np.random.default_rng(seed).random(tuple(image.shape[-3:]))
    return 0.9 * image + 0.1 * torch.from_numpy(pattern).to(image)


def _wave(image: torch.Tensor, across: float, down: float, phase: float) -> torch.Tensor:
    """across, down: cycles over the image's side; phase in radians at the upper left."""
    place = torch.arange(image.shape[-1], dtype=image.dtype, device=image.device) / image.shape[-1]
    wave = 20 / 255 * torch.sin(2 * math.pi * (across * place + down * place[:, None]) + phase)
    return (image + wave).clamp(0, 1)
