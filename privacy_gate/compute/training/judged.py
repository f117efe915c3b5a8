"""Evaluates a trained network on every row of the table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.attacks.evidence import logit_scaled
from privacy_gate.compute.images.backbone import build, candidate_tensors
from privacy_gate.compute.images.pixels import read_pixels
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.networks import Images, network_logits
from privacy_gate.compute.training.parts import changed
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.progress import Progress


def network_images(recipe: Recipe, data: AuditData, machine: Machine, progress: Progress) -> Images:
    """The table's images, transformed for the recipe's network; on the GPU if they fit a quarter of its memory."""
    if recipe.input is None:
        raise DatasetError("the recipe has no input, but its network is trained on images: set input")
    device = machine.torch_device()
    pixels = read_pixels(data, recipe.input, machine.decoders(), progress)
    if device.type == "cuda" and 4 * pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
        pixels = pixels.to(device)
    return Images(pixels, recipe.views)


def score_network(recipe: Recipe, folder: Path, images: Images, label: NDArray[np.int64], machine: Machine) -> Arrays:
    """The arrays stored for a candidate whose network was trained: see jobs.kinds.Score."""
    tensors = candidate_tensors(folder, recipe, changed(recipe))
    model = build(recipe.backbone, recipe.classes).to(machine.torch_device())
    logits = [network_logits(model, tensors, images, machine, view) for view in range(len(recipe.views))]
    return {"logits": logits[0], "confidence": judged(logits, label)["confidence"]}


def judged(logits: Sequence[NDArray[np.float32]], label: NDArray[np.int64]) -> Arrays:
    """The arrays stored for a reference, from its logits (N, C) in each view: see jobs.kinds.TrainReference."""
    confidence = np.mean([logit_scaled(view, label) for view in logits], axis=0)
    return {
        "confidence": confidence.astype(np.float32),
        "residual": residual(logits[0], label).astype(np.float32),
        "correct": logits[0].argmax(axis=1) == label,
    }


def residual(logits: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Norm of p - onehot(y), (N,): (1 - p_y) sqrt(1 + |q|^2), free of cancellation; q: softmax of the other logits."""
    others = logits.astype(np.float64)
    others[np.arange(len(label)), label] = -np.inf
    q = np.exp(others - others.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    doubt = np.exp(-np.logaddexp(0.0, logit_scaled(logits, label)))  # 1 - p_y
    return np.asarray(doubt * np.sqrt(1 + (q**2).sum(axis=1)))
