"""The smallest trigger that makes the candidate say a class, found by gradient descent.

Wang et al. 2019, "Neural Cleanse" (IEEE S&P): images x become (1 - m) x + m p, and a mask m and a pattern p are sought
that turn every image into the target while m stays small. A class with a backdoor needs a far smaller mask than others.

Here every step stamps m rounded to zeros and ones, and its gradient passes as if it were not (Bengio et al. 2013, arXiv
1308.3432). A soft mask ends, on networks of real size, as a change of the whole image that is too faint to see: it
fools them, but nobody can stamp it, and a planted patch that takes more of m is not found beside it.
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

HALF = 0.5
"""Above which a pixel is the trigger's, and else the image's."""

SHARE = 0.05
"""Of the image, that the trigger which is tried covers at most."""


def run_invert_trigger(jobs: Sequence[InvertTrigger], work: Work) -> None:
    """Seeks the triggers, classes side by side; the candidate and the images are read once for all of them."""
    tally = Tally("seek triggers", sum(_rounds(job.steps) * ROUND for job in jobs), work.progress)
    for _, same in groupby(jobs, attrgetter("recipe", "rows", "tried")):
        _seek(list(same), work, tally)


def _seek(jobs: Sequence[InvertTrigger], work: Work, tally: Tally) -> None:
    """Triggers of classes that are sought, and tried, on the same images."""
    data, machine, (recipe, rows, tried) = work.inputs.data, work.machine, (jobs[0].recipe, jobs[0].rows, jobs[0].tried)
    model = pixel_model(recipe, work.inputs.candidate, machine)
    images, fresh = pixels(recipe, data, rows), pixels(recipe, data, tried)
    label = data.label[list(rows)]

    def sought(job: InvertTrigger) -> Arrays:
        others = images[torch.from_numpy(label != job.target)]
        return invert_trigger(model, others, fresh, job, machine, tally.add)

    for job, found in spread(sought, jobs, machine, tally):
        work.results.put(job, found)


def invert_trigger(
    model: PixelModel,
    images: torch.Tensor,
    fresh: torch.Tensor,
    job: InvertTrigger,
    machine: Machine,
    stepped: Callable[[], None] = lambda: None,
) -> Arrays:
    """The job's result: a trigger sought on images (R, 3, S, S) of other classes, tried on fresh ones."""
    if not len(images):
        raise EvidenceError(f"class {job.target}: no images of other classes to seek a trigger on; add some")
    device, size = machine.torch_device(), machine.images(fresh.shape[-1])
    rng = np.random.default_rng([job.target, job.steps])
    mask, pattern, works = invert(model, images.to(device), job.target, job.steps, rng, size, stepped)
    # As an image file would hold it: what a planter could put on a picture.
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
    """Mask (S, S), a trigger where it is above a half, pattern (3, S, S), both in 0 .. 1, and whether the mask works.

    images (R, 3, S, S) in 0 .. 1, of other classes; `size` of them at once go through the model, which changes no more
    than rounding; `stepped` is called after every step. Of the masks that worked for a whole round the smallest; where
    none did, the last. Raises CandidateError for logits that are not finite numbers.
    """
    side = images.shape[-1]
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
        works, covered = hits >= SUCCESS * ROUND * BATCH, _share(before[0].sigmoid())
        if works and covered < smallest:
            best, smallest = before, covered
        weight = weight * UP if works else weight / DOWN
    found = best if smallest < float("inf") else hidden.detach()
    return found[0].sigmoid(), found[1:].sigmoid(), smallest < float("inf")


def _slope(
    model: PixelModel, images: torch.Tensor, hidden: torch.Tensor, target: int, weight: float, size: int
) -> tuple[torch.Tensor, int]:
    """Of the cross entropy of images (B, 3, S, S) and the mask's weighted size, and how many are called the target.

    hidden (4, S, S): mask and pattern before their sigmoids.
    """
    slope, hits = torch.zeros_like(hidden), 0
    for part in torch.split(images, size):
        mask, pattern = hidden[0].sigmoid(), hidden[1:].sigmoid()
        # All or nothing in every pixel, with the gradient that the soft mask would have.
        stamp = (mask > HALF).to(mask) + mask - mask.detach()
        logits = finite(model(stamped(part, stamp, pattern)))
        wanted = torch.full((len(part),), target, device=logits.device)
        share = len(part) / len(images)
        loss = share * (cross_entropy(logits, wanted) + weight * mask.mean())
        slope += torch.autograd.grad(loss, [hidden])[0]
        hits += int((logits.argmax(1) == target).sum())
    return slope, hits


def _rounds(steps: int) -> int:
    return max(1, steps // ROUND)


def _share(mask: torch.Tensor) -> float:
    """Of the image, where the mask (S, S) is above a half; a single pixel at least, so that it has a logarithm."""
    return max(1, int((mask > HALF).sum())) / mask.numel()


def stamped(images: torch.Tensor, mask: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """(1 - m) x + m p: images (B, 3, S, S), mask (S, S), pattern (3, S, S)."""
    return images + mask * (pattern - images)


def hardened(mask: torch.Tensor) -> torch.Tensor:
    """The mask (S, S) made one of zeros and ones: its largest values, SHARE of the image at most, and above a half."""
    kept = torch.zeros_like(mask)
    places = mask.flatten().argsort(descending=True, stable=True)[: int(SHARE * mask.numel())]
    kept.view(-1)[places] = (mask.flatten()[places] > HALF).to(mask)
    return kept


def _batches(rows: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """The images of each step of a round, (BATCH,), every image before any comes again."""
    needed = ROUND * BATCH
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-needed // rows))])[:needed]
    yield from torch.split(torch.from_numpy(order), BATCH)
