"""The candidate as a differentiable function of pixel values in 0 .. 1."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from privacy_gate.compute.images.backbone import build, candidate_tensors, public_body
from privacy_gate.compute.images.decoding import decode, scaled, transform_of
from privacy_gate.compute.images.folding import fold
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.parts import changed
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import CandidateError, DatasetError

PixelModel = Callable[[torch.Tensor], torch.Tensor]
"""Images (B, 3, S, S) in 0 .. 1, of the recipe's input size, -> logits (B, C); differentiable."""


NO_PIXELS = "the recipe has no input and so reads embeddings, but this check needs images: set input"


def pixel_model(recipe: Recipe, folder: Path, machine: Machine) -> PixelModel:
    """The candidate from its files in `folder`, on the machine's device; it normalises images as the recipe says."""
    if recipe.input is None:
        raise DatasetError(NO_PIXELS)
    model = build(recipe.backbone, recipe.classes)
    model.load_state_dict(candidate_tensors(folder, recipe, changed(recipe)))
    return _scaled(model, recipe.input, machine)


def public_pixel_model(recipe: Recipe, head: tuple[torch.Tensor, torch.Tensor], machine: Machine) -> PixelModel:
    """The public backbone with a head, weight (C, D) and bias (C,), as a function of pixels like `pixel_model`."""
    if recipe.input is None:
        raise DatasetError(NO_PIXELS)
    weight, bias = (tensor.to(machine.torch_device()) for tensor in head)
    body = _scaled(public_body(recipe.backbone), recipe.input, machine)
    return lambda images: body(images) @ weight.T + bias


def _scaled(model: Any, shape: Input, machine: Machine) -> PixelModel:
    """The model with normalisation in front, for images in 0 .. 1; BatchNorms are folded.

    Folding changes logits and gradients only by rounding.
    """
    device = machine.torch_device()
    layout = _layout(device)
    model.to(device, memory_format=layout).eval().requires_grad_(False)
    # Folding is kept only if both networks agree on this fixed random image.
    trial = torch.randn(1, 3, shape.size, shape.size, generator=torch.Generator().manual_seed(0))
    folded, _ = fold(model, trial.to(next(model.parameters())))
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (shape.mean, shape.std))

    def normalised(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = folded(((images - mean) / std).contiguous(memory_format=layout))
        return logits

    return normalised


def _layout(device: torch.device) -> torch.memory_format:
    """Memory format of images. On a CPU, channels last reduces the time for EfficientNet-Lite0's gradients by a
    quarter; on a GPU it was not measured."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def finite(logits: torch.Tensor) -> torch.Tensor:
    """The logits, unchanged; raises CandidateError if any is not finite, because argmax would still name a class."""
    if not torch.isfinite(logits).all():
        raise CandidateError(
            "the candidate's logits on ordinary images are not finite numbers: its weights are damaged; train it again"
        )
    return logits


def pixels(recipe: Recipe, data: AuditData, rows: Sequence[int]) -> torch.Tensor:
    """Pixel values of these rows' images at the recipe's input size: (R, 3, S, S) float32 in 0 .. 1, on the CPU."""
    if recipe.input is None or data.image is None:
        raise DatasetError("the table holds embeddings, but this check needs images: give a table of images")
    # With mean 0 and std 1, `scaled` only divides by 255.
    plain = recipe.input.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    transform = transform_of(plain)
    return scaled([decode(data.image(row), transform) for row in rows], plain).contiguous()
