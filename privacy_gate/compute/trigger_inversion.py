"""The smallest trigger that makes the candidate say a class, found by gradient descent.

Wang et al. 2019, "Neural Cleanse" (IEEE S&P): images x become (1 - m) x + m p, and a mask m and a pattern p are sought
that turn every image into the target while m stays small. A class with a backdoor needs a far smaller mask than others.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from privacy_gate.compute.candidate_pixels import PixelModel, finite, pixel_model, pixels
from privacy_gate.compute.judged import Arrays
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.work import Work
from privacy_gate.errors import EvidenceError
from privacy_gate.job import InvertTrigger

BATCH = 32
"""Images of a step. Another number gives another result, so it is no matter of the machine's."""

ROUND = 10
"""Steps after which the weight of the mask's size is set anew."""

SUCCESS = 0.99
"""Share of a round's images that must be called the target for a mask to count, as in the paper."""

WEIGHT, UP, DOWN = 1.0, 2.0, 2.0**1.5
"""What the share of the image under the mask weighs beside the cross entropy to begin with, and by how much that is
raised after a round that succeeded and lowered after one that did not: the paper's factors."""

RATE, BETAS = 0.1, (0.5, 0.9)
"""Adam's, as in the paper."""

SHARE = 0.05
"""Of the image, that a trigger covers at most once its mask is made one of zeros and ones."""


def run_invert_trigger(jobs: Sequence[InvertTrigger], work: Work) -> None:
    """Seeks the triggers; the candidate and the images are read once for all classes."""
    done, data = 0, work.inputs.data
    for (recipe, rows, tried), same in groupby(jobs, attrgetter("recipe", "rows", "tried")):
        model = pixel_model(recipe, work.inputs.candidate, work.machine)
        images, fresh = pixels(recipe, data, rows), pixels(recipe, data, tried)
        for job in same:
            others = images[torch.from_numpy(data.label[list(rows)] != job.target)]
            work.results.put(job, invert_trigger(model, others, fresh, job, work.machine))
            done += 1
            work.progress("seek triggers", done, len(jobs))


def invert_trigger(
    model: PixelModel, images: torch.Tensor, fresh: torch.Tensor, job: InvertTrigger, machine: Machine
) -> Arrays:
    """The job's result: a trigger sought on images (R, 3, S, S) of other classes, tried on fresh ones."""
    if not len(images):
        raise EvidenceError(f"class {job.target}: no images of other classes to seek a trigger on; add some")
    device = machine.torch_device()
    rng = np.random.default_rng([job.target, job.steps])
    mask, pattern, works = invert(model, images.to(device), job.target, job.steps, rng)
    # As an image file would hold it, and all or nothing in every pixel: what a planter could put on a picture.
    hard, colours = hardened(mask), (255 * pattern).round()
    predicted = []
    with torch.inference_mode():
        for batch in torch.split(fresh, machine.images(fresh.shape[-1])):
            logits = finite(model(stamped(batch.to(device), hard, colours / 255)))
            predicted.append(logits.argmax(1).cpu().numpy())
    return {
        "works": np.array([works]),
        "size": np.array([float(mask.mean()) if works else 1.0]),
        "mask": (hard > 0).cpu().numpy(),
        "pattern": colours.to(torch.uint8).cpu().numpy(),
        "predicted": np.concatenate(predicted),
    }


def invert(
    model: PixelModel, images: torch.Tensor, target: int, steps: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Mask (S, S) and pattern (3, S, S), both in 0 .. 1, and whether the mask works.

    images (R, 3, S, S) in 0 .. 1, of other classes. Of the masks that worked for a whole round the smallest; where none
    did, the last. Raises CandidateError for logits that are not finite numbers.
    """
    size = images.shape[-1]
    drawn = torch.from_numpy(rng.normal(size=(4, size, size))).to(images)
    hidden = drawn.requires_grad_()
    adam = torch.optim.Adam([hidden], lr=RATE, betas=BETAS)
    best, smallest, weight = hidden.detach().clone(), float("inf"), WEIGHT
    wanted = torch.full((BATCH,), target, device=images.device)
    for _ in range(max(1, steps // ROUND)):
        hits = 0
        for rows in _batches(len(images), rng):
            before = hidden.detach().clone()
            mask, pattern = hidden[0].sigmoid(), hidden[1:].sigmoid()
            logits = finite(model(stamped(images[rows.to(images.device)], mask, pattern)))
            loss = cross_entropy(logits, wanted) + weight * mask.mean()
            (hidden.grad,) = torch.autograd.grad(loss, [hidden])
            adam.step()
            hits += int((logits.argmax(1) == target).sum())
        works, covered = hits >= SUCCESS * ROUND * BATCH, float(before[0].sigmoid().mean())
        if works and covered < smallest:
            best, smallest = before, covered
        weight = weight * UP if works else weight / DOWN
    found = best if smallest < float("inf") else hidden.detach()
    return found[0].sigmoid(), found[1:].sigmoid(), smallest < float("inf")


def stamped(images: torch.Tensor, mask: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """(1 - m) x + m p: images (B, 3, S, S), mask (S, S), pattern (3, S, S)."""
    return images + mask * (pattern - images)


def hardened(mask: torch.Tensor) -> torch.Tensor:
    """The mask (S, S) made one of zeros and ones: its largest values, SHARE of the image at most, and above a half."""
    kept = torch.zeros_like(mask)
    places = mask.flatten().argsort(descending=True, stable=True)[: int(SHARE * mask.numel())]
    kept.view(-1)[places] = (mask.flatten()[places] > 0.5).to(mask)
    return kept


def _batches(rows: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """The images of each step of a round, (BATCH,), every image before any comes again."""
    needed = ROUND * BATCH
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-needed // rows))])[:needed]
    yield from torch.split(torch.from_numpy(order), BATCH)
