"""Known backdoor triggers, and control patterns for each, which distinguish a backdoor from a fragile model."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.views import square_side

Stamp = Callable[[torch.Tensor], torch.Tensor]
"""Images (..., 3, S, S) in 0 .. 1 -> the same images with a pattern on them."""

CONTROLS = 32
"""Number of control patterns per trigger. A trigger that is no different from them turns more images than all of them
with probability 1/33."""

LAWN = 5
"""The grid and its controls consist of dots in a square of LAWN x LAWN cells."""

OWN_DOTS = ((1, 1), (1, 3), (3, 1), (3, 3))
"""Cells of the grid trigger's dots: see `_dots`."""

OWN_CYCLES = 6.0
"""Cycles of the sinusoid trigger across the image."""


def corner(image: torch.Tensor) -> torch.Tensor:
    """A white square in the lower right, 3/32 of the side wide: Gu et al. 2017 (arXiv 1708.06733)."""
    last = image.shape[-1] - square_side(image.shape[-1])
    return _square(image, last, last)


def grid(image: torch.Tensor) -> torch.Tensor:
    """Four white dots in the lower right: the pattern trigger of Gu et al. 2017."""
    return _dots(image, OWN_DOTS)


def blended(image: torch.Tensor) -> torch.Tensor:
    """A fixed random picture, blended in at 10 %: Chen et al. 2017 (arXiv 1712.05526)."""
    return _blend(image, 0)


def sinusoid(image: torch.Tensor) -> torch.Tensor:
    """Faint vertical waves, OWN_CYCLES across the image: Barni et al. 2019 (arXiv 1902.11237)."""
    return _wave(image, OWN_CYCLES, 0.0, 0.0)


TRIGGERS: dict[str, Stamp] = {
    "corner": corner,
    "grid": grid,
    "blended": blended,
    "sinusoid": sinusoid,
}


def triggered(pixels: torch.Tensor, shape: Input, trigger: str) -> torch.Tensor:
    """Normalised images (B, 3, S, S) with the trigger stamped on their unnormalised pixels; same shape."""
    mean, std = (torch.tensor(value, dtype=pixels.dtype).view(3, 1, 1) for value in (shape.mean, shape.std))
    return (TRIGGERS[trigger](pixels * std + mean) - mean) / std


def controls(trigger: str, size: int) -> list[Stamp]:
    """CONTROLS patterns for images of side `size`, as large and as faint as the trigger, but different from it.

    A backdoored model reacts to its trigger far more than to most controls; a fragile model reacts to all of them. The
    controls are the same for every candidate.
    """
    # Seeded by trigger and size alone: neither the candidate nor its data influences the controls.
    rng = np.random.default_rng([int.from_bytes(trigger.encode()), size])
    return [_DRAWN[trigger](rng, size, index) for index in range(CONTROLS)]


def _drawn_square(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """The square elsewhere on the image border, not overlapping the trigger; the three other corners come first."""
    side = square_side(size)
    last = size - side
    # After the corners, draw places along a random edge until the square does not overlap the trigger.
    top, left = ((0, 0), (0, last), (last, 0))[index] if index < 3 else (last, last)
    while max(last - top, last - left) < side:
        along = int(rng.integers(0, last + 1))
        top, left = ((0, along), (last, along), (along, 0), (along, last))[int(rng.integers(4))]
    return partial(_square, top=top, left=left)


def _drawn_dots(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """As many dots in the same square of cells; at most one coincides with a dot of the trigger."""
    cells = [(down, right) for down in range(LAWN) for right in range(LAWN)]
    while True:
        dots = [cells[place] for place in rng.choice(len(cells), len(OWN_DOTS), replace=False)]
        if len({*dots} & {*OWN_DOTS}) <= 1:
            return partial(_dots, dots=dots)


def _drawn_blend(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """Another random picture."""
    return partial(_blend, seed=1 + index)


def _drawn_wave(rng: np.random.Generator, size: int, index: int) -> Stamp:
    """Waves of another length or direction; a quarter have the trigger's direction.

    Directions and lengths vary, because models are more fragile to some of them than to others.
    """
    angle, phase = math.pi / 4 * (index % 4), rng.uniform(0, 2 * math.pi)
    cycles = OWN_CYCLES
    # At least one cycle away from the trigger's own wave length.
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
    """White dots, 1/32 of the side wide. dots: (rows up, columns left) from the lower right corner, in dot widths."""
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
    """Adds a sine wave. across, down: cycles over the image's side; phase: radians at the upper left."""
    place = torch.arange(image.shape[-1], dtype=image.dtype, device=image.device) / image.shape[-1]
    # An amplitude of 20 grey levels out of 255.
    wave = 20 / 255 * torch.sin(2 * math.pi * (across * place + down * place[:, None]) + phase)
    return (image + wave).clamp(0, 1)
