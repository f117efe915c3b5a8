"""Adversarial changes of the candidate's images: one for each image (Evade), or one for all images (Universal)."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch

from privacy_gate.arrays import Arrays, Ints
from privacy_gate.compute.machine.device import Machine, single_threaded_kernels
from privacy_gate.compute.machine.spread import Tally, in_order
from privacy_gate.compute.runners.apgd import ahead, apgd, cross_entropy, towards
from privacy_gate.compute.runners.candidate_pixels import PixelModel, pixel_model, pixels, public_pixel_model
from privacy_gate.compute.runners.universal import linear_probe, sign_noise, universal
from privacy_gate.compute.work import Work
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Evade, Universal
from privacy_gate.progress import silent

GUESSES = 10
"""Number of random changes tried on each image. If random changes fool the model but gradients do not, its gradients
are masked."""

WIDE = 64 / 255
"""A radius within which any image can be turned into another class: a model that withstands it hides its gradients."""


def run_evade(jobs: Sequence[Evade], work: Work) -> None:
    """Attacks every row of every job, batch by batch."""
    for recipe, same in groupby(jobs, attrgetter("recipe")):
        model = pixel_model(recipe, work.inputs.candidate, work.machine)
        for job in same:
            work.results.put(job, _evade(model, recipe, job, work))


def _evade(model: PixelModel, recipe: Recipe, job: Evade, work: Work) -> Arrays:
    """The job's result: see jobs.kinds.Evade."""
    device, size = work.machine.torch_device(), work.machine.images(recipe.side)
    tally = Tally("seek adversarial images", len(job.rows), work.progress)

    def interruptible(images: torch.Tensor) -> torch.Tensor:
        tally.go_on()
        return model(images)

    def attacked(first: int) -> Arrays:
        rows = job.rows[first : first + size]
        x = pixels(recipe, work.inputs.data, rows).to(device)
        label = torch.from_numpy(work.inputs.data.label[list(rows)]).to(device)
        result = evade(interruptible, x, label, rows, job)
        tally.add(len(rows))
        return result

    parts = in_order(attacked, range(0, len(job.rows), size), work.machine, tally)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evade(model: PixelModel, x: torch.Tensor, label: torch.Tensor, rows: Sequence[int], job: Evade) -> Arrays:
    """The job's result for images x (B, 3, S, S) in 0 .. 1 of these rows, with label (B,)."""
    radius = job.levels / 255
    with torch.inference_mode():
        logits = model(x)
    right = logits.argmax(1) == label
    # Targets (B, T): the classes with the largest logits other than the true one.
    masked = logits.clone().scatter_(1, label.unsqueeze(1), -torch.inf)
    targets = masked.argsort(stable=True, dim=1, descending=True)[:, : min(job.targets, logits.shape[1] - 1)]
    flat = torch.zeros_like(right)
    flat[right] = _flat(model, x[right], label[right], targets[right, 0])
    alone = right & ~_fooled(model, x, label, right, None, radius, job.steps)
    # Targeted attacks run only on rows that withstood all attacks so far.
    standing = alone
    for target in targets.unbind(1):
        standing = standing & ~_fooled(model, x, label, standing, target, radius, job.steps)
    # Random sign changes at the full radius: a lower bound that needs no gradients.
    guessed = torch.zeros_like(right)
    with torch.inference_mode():
        for guess in range(GUESSES):
            noise = torch.stack([sign_noise(x.shape[-1], row, guess) for row in rows]).to(x)
            guessed |= right & (model((x + radius * noise).clamp(0, 1)).argmax(1) != label)
    # Rows that withstand both attacks even within WIDE.
    wide = right.clone()
    for chosen in (None, targets[:, 0]):
        wide = wide & ~_fooled(model, x, label, wide, chosen, WIDE, job.steps)
    flags = {"right": right, "untargeted": alone, "standing": standing, "guessed": guessed, "wide": wide, "flat": flat}
    return {name: values.cpu().numpy() for name, values in flags.items()}


def _fooled(
    model: PixelModel,
    x: torch.Tensor,
    label: torch.Tensor,
    among: torch.Tensor,
    target: torch.Tensor | None,
    radius: float,
    steps: int,
) -> torch.Tensor:
    """Which of the rows `among` (B,) fool the model after an attack, (B,); target (B,), None: untargeted."""
    fooled = torch.zeros_like(among)
    if bool(among.any()):
        loss = cross_entropy if target is None else towards(target[among])
        fooled[among] = apgd(model, x[among], label[among], loss, radius, steps)[1]
    return fooled


def _flat(model: PixelModel, x: torch.Tensor, label: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Rows (B,) for which the gradient of z_target - z_label is exactly 0 in every pixel."""
    if not len(x):
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(ahead(target)(model(leaf), label).sum(), [leaf])
    return ~(gradient != 0).flatten(1).any(1)


def run_universal(jobs: Sequence[Universal], work: Work) -> None:
    """Crafts each universal change on the public backbone, and tries it on the candidate."""
    tally = Tally("seek a universal change", sum(job.steps for job in jobs), work.progress)
    for job in jobs:
        work.results.put(job, _universal(job, work, tally))


def _universal(job: Universal, work: Work, tally: Tally) -> Arrays:
    """The job's result: see jobs.kinds.Universal."""
    data, recipe, device = work.inputs.data, job.recipe, work.machine.torch_device()
    rows = list(job.rows)
    features = work.features(recipe.backbone, recipe.input)[rows]
    probe = linear_probe(torch.from_numpy(features), torch.from_numpy(data.label[rows]), recipe.classes)
    source = public_pixel_model(recipe, probe, work.machine)
    x, label = pixels(recipe, data, rows).to(device), torch.from_numpy(data.label[rows]).to(device)
    threads = work.machine.computing_threads()
    with single_threaded_kernels(device):
        change = universal(source, x, label, job.levels / 255, job.steps, threads, tally.add)
    fresh = pixels(recipe, data, job.tried)
    noise = job.levels / 255 * sign_noise(fresh.shape[-1], 0, 0).to(device)
    model = pixel_model(recipe, work.inputs.candidate, work.machine)
    classes = {}
    for name, pixels_to_logits in (("predicted", model), ("probe", source)):
        for suffix, shift in (("plain", None), ("shifted", change), ("noise", noise)):
            classes[f"{name}_{suffix}"] = _classes(pixels_to_logits, fresh, shift, work.machine)
    return classes


def _classes(model: PixelModel, images: torch.Tensor, shift: torch.Tensor | None, machine: Machine) -> Ints:
    """Predicted classes (R,) of images (R, 3, S, S), with shift (3, S, S) added to each; None: unchanged."""
    device, size = machine.torch_device(), machine.images(images.shape[-1])

    def predicted(first: int) -> Ints:
        batch = images[first : first + size].to(device)
        with torch.inference_mode():
            shifted = batch if shift is None else (batch + shift).clamp(0, 1)
            return np.asarray(model(shifted).argmax(1).cpu().numpy())

    return np.concatenate(in_order(predicted, range(0, len(images), size), machine, Tally("", 0, silent)))
