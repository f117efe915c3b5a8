"""The candidate as a differentiable function of what an image shows."""

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
"""Images (B, 3, S, S) in 0 .. 1, as large as the recipe's input, -> logits (B, C); differentiable."""


def pixel_model(recipe: Recipe, folder: Path, machine: Machine) -> PixelModel:
    """The candidate whose files lie in `folder`, on the machine's device; images are scaled as the recipe says."""
    if recipe.input is None:
        raise DatasetError("the recipe reads embeddings; pixels are needed")
    model = build(recipe.backbone, recipe.classes)
    model.load_state_dict(candidate_tensors(folder, recipe, changed(recipe)))
    return _scaled(model, recipe.input, machine)


def public_pixel_model(recipe: Recipe, head: tuple[torch.Tensor, torch.Tensor], machine: Machine) -> PixelModel:
    """The public backbone with a head, weight (C, D) and bias (C,), likewise."""
    if recipe.input is None:
        raise DatasetError("the recipe reads embeddings; pixels are needed")
    weight, bias = (each.to(machine.torch_device()) for each in head)
    body = _scaled(public_body(recipe.backbone), recipe.input, machine)
    return lambda images: body(images) @ weight.T + bias


def _scaled(model: Any, shape: Input, machine: Machine) -> PixelModel:
    """The model on images that show 0 .. 1; its BatchNorms folded, which makes its gradients too the same but for
    rounding."""
    device = machine.torch_device()
    layout = _layout(device)
    model.to(device, memory_format=layout).eval().requires_grad_(False)
    trial = torch.randn(1, 3, shape.size, shape.size, generator=torch.Generator().manual_seed(0))
    folded, _ = fold(model, trial.to(next(model.parameters())))
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (shape.mean, shape.std))

    def out(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = folded(((images - mean) / std).contiguous(memory_format=layout))
        return found

    return out


def _layout(device: torch.device) -> torch.memory_format:
    """How images lie in memory: on a CPU channels last, by which EfficientNet-Lite0's gradients take three quarters of
    the time; a GPU's were not measured."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def finite(logits: torch.Tensor) -> torch.Tensor:
    """The logits of ordinary images; raises CandidateError where they are no numbers: argmax would name a class yet."""
    if not torch.isfinite(logits).all():
        raise CandidateError(
            "the candidate's logits on ordinary images are not finite numbers: its weights are damaged; train it anew"
        )
    return logits


def pixels(recipe: Recipe, data: AuditData, rows: Sequence[int]) -> torch.Tensor:
    """What these rows' images show at the recipe's input size: (R, 3, S, S) float32 in 0 .. 1, on the CPU."""
    if recipe.input is None or data.image is None:
        raise DatasetError("the table holds embeddings; pixels are needed")
    plain = recipe.input.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    transform = transform_of(plain)
    return scaled([decode(data.image(row), transform) for row in rows], plain).contiguous()
