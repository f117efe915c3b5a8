"""Searches by gradient descent for the smallest trigger that makes the candidate predict a given class.

Wang et al. 2019, "Neural Cleanse" (IEEE S&P): images x become (1 - m) x + m p. The search is for a mask m and a pattern
p that turn every image into the target class while m stays small. A class with a backdoor needs a far smaller mask
than other classes.

Here every step uses m rounded to zeros and ones, with a straight-through gradient (Bengio et al. 2013, arXiv
1308.3432). On networks of real size, a soft mask would converge to a faint change of the whole image. That fools the
network but is no stamp that an attacker could apply, and it hides a planted patch, which needs a larger m.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from privacy_gate.arrays import Arrays
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.spread import Tally, spread
from privacy_gate.compute.runners.candidate_pixels import PixelModel, finite, pixel_model, pixels
from privacy_gate.compute.work import Work
from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.kinds import InvertTrigger

BATCH = 32
"""Images per step. It affects results, so it is a constant and not a setting of the machine."""

ROUND = 10
"""Number of steps in a round, after which the weight of the mask's size is adjusted."""

SUCCESS = 0.99
"""Share of a round's images that must be predicted as the target for a mask to count as working, as in the paper."""

WEIGHT, UP, DOWN = 1.0, 2.0, 2.0**1.5
"""Initial weight of the mask's share of the image relative to the cross-entropy, and the factors by which it is raised
after a successful round and lowered after a failed one, as in the paper."""

RATE, BETAS = 0.1, (0.5, 0.9)
"""Adam's learning rate and betas, as in the paper."""

HALF = 0.5
"""Mask value above which a pixel belongs to the trigger."""

SHARE = 0.05
"""Maximum share of the image that the tried trigger covers."""


def run_invert_trigger(jobs: Sequence[InvertTrigger], work: Work) -> None:
    """Searches the triggers of several classes in parallel; candidate and images are read only once."""
    tally = Tally("seek triggers", sum(_rounds(job.steps) * ROUND for job in jobs), work.progress)
    for _, same in groupby(jobs, attrgetter("recipe", "rows", "tried")):
        _seek(list(same), work, tally)


def _seek(jobs: Sequence[InvertTrigger], work: Work, tally: Tally) -> None:
    """Searches the triggers of jobs that use the same images, and stores the results."""
    data, machine, (recipe, rows, tried) = work.inputs.data, work.machine, (jobs[0].recipe, jobs[0].rows, jobs[0].tried)
    model = pixel_model(recipe, work.inputs.candidate, machine)
    images, fresh = pixels(recipe, data, rows), pixels(recipe, data, tried)
    label = data.label[list(rows)]

    def search(job: InvertTrigger) -> Arrays:
        others = images[torch.from_numpy(label != job.target)]
        return invert_trigger(model, others, fresh, job, machine, tally.add)

    for job, result in spread(search, jobs, machine, tally):
        work.results.put(job, result)


def invert_trigger(
    model: PixelModel,
    images: torch.Tensor,
    fresh: torch.Tensor,
    job: InvertTrigger,
    machine: Machine,
    stepped: Callable[[], None] = lambda: None,
) -> Arrays:
    """The job's result: a trigger searched on images (R, 3, S, S) of other classes, and tried on fresh images."""
    if not len(images):
        raise EvidenceError(f"class {job.target}: no images of other classes to search a trigger on; add some")
    device, size = machine.torch_device(), machine.images(fresh.shape[-1])
    rng = np.random.default_rng([job.target, job.steps])
    mask, pattern, works = invert(model, images.to(device), job.target, job.steps, rng, size, stepped)
    # An attacker can stamp only what an image file can store: a hard mask and 8-bit colours.
    hard, colours = hardened(mask), (255 * pattern).round()
    predicted = []
    with torch.inference_mode():
        for batch in torch.split(fresh, size):
            logits = finite(model(stamped(batch.to(device), hard, colours / 255)))
            predicted.append(logits.argmax(1).cpu().numpy())
    return {
        "works": np.array([works]),
        "size": np.array([_share(mask) if works else 1.0]),
        "mask": (hard > 0).cpu().numpy(),
        "pattern": colours.to(torch.uint8).cpu().numpy(),
        "predicted": np.concatenate(predicted),
    }


def invert(
    model: PixelModel,
    images: torch.Tensor,
    target: int,
    steps: int,
    rng: np.random.Generator,
    size: int = BATCH,
    stepped: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Mask (S, S) and pattern (3, S, S), both in 0 .. 1, and whether the mask works. Mask > HALF marks the trigger.

    images (R, 3, S, S) in 0 .. 1, of other classes; size: images per forward pass, which changes results only by
    rounding; `stepped` is called after every step. Returns the smallest mask that worked for a whole round, or the last
    mask if none worked. Raises CandidateError if logits are not finite.
    """
    side = images.shape[-1]
    # Mask (channel 0) and pattern (channels 1 to 3) before their sigmoids, so that Adam needs no bounds.
    hidden = torch.from_numpy(rng.normal(size=(4, side, side))).to(images).requires_grad_()
    adam = torch.optim.Adam([hidden], lr=RATE, betas=BETAS)
    best, smallest, weight = hidden.detach().clone(), float("inf"), WEIGHT
    for _ in range(_rounds(steps)):
        hits = 0
        for rows in _batches(len(images), rng):
            before = hidden.detach().clone()
            hidden.grad, right = _slope(model, images[rows.to(images.device)], hidden, target, weight, size)
            adam.step()
            hits += right
            stepped()
        # `before` is the mask that the round's last step evaluated; its update was not tried yet.
        works, covered = hits >= SUCCESS * ROUND * BATCH, _share(before[0].sigmoid())
        if works and covered < smallest:
            best, smallest = before, covered
        # Press for a smaller mask while it works, and give way quickly once it does not.
        weight = weight * UP if works else weight / DOWN
    final = best if smallest < float("inf") else hidden.detach()
    return final[0].sigmoid(), final[1:].sigmoid(), smallest < float("inf")


def _slope(
    model: PixelModel, images: torch.Tensor, hidden: torch.Tensor, target: int, weight: float, size: int
) -> tuple[torch.Tensor, int]:
    """Gradient of the images' mean cross-entropy plus the weighted mask size, and the number of images that hit.

    images (B, 3, S, S); hidden (4, S, S): mask and pattern before their sigmoids. An image hits if the model predicts
    the target.
    """
    slope, hits = torch.zeros_like(hidden), 0
    for part in torch.split(images, size):
        mask, pattern = hidden[0].sigmoid(), hidden[1:].sigmoid()
        # Straight-through: the value is the hard mask, the gradient that of the soft mask.
        stamp = (mask > HALF).to(mask) + mask - mask.detach()
        logits = finite(model(stamped(part, stamp, pattern)))
        targets = torch.full((len(part),), target, device=logits.device)
        share = len(part) / len(images)
        loss = share * (cross_entropy(logits, targets) + weight * mask.mean())
        slope += torch.autograd.grad(loss, [hidden])[0]
        hits += int((logits.argmax(1) == target).sum())
    return slope, hits


def _rounds(steps: int) -> int:
    return max(1, steps // ROUND)


def _share(mask: torch.Tensor) -> float:
    """Share of the image under the hard mask (S, S); at least one pixel, so that its logarithm is finite."""
    return max(1, int((mask > HALF).sum())) / mask.numel()


def stamped(images: torch.Tensor, mask: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """(1 - m) x + m p: images (B, 3, S, S), mask (S, S), pattern (3, S, S)."""
    return images + mask * (pattern - images)


def hardened(mask: torch.Tensor) -> torch.Tensor:
    """A mask (S, S) of zeros and ones: 1 for the largest values above HALF, in at most SHARE of the image."""
    kept = torch.zeros_like(mask)
    places = mask.flatten().argsort(descending=True, stable=True)[: int(SHARE * mask.numel())]
    kept.view(-1)[places] = (mask.flatten()[places] > HALF).to(mask)
    return kept


def _batches(rows: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Image indices for each step of a round, (BATCH,); every image is used once before any is repeated."""
    needed = ROUND * BATCH
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-needed // rows))])[:needed]
    yield from torch.split(torch.from_numpy(order), BATCH)
