"""The candidate's predictions on corrupted images."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch

from privacy_gate.arrays import Arrays, Ints
from privacy_gate.compute.images.corruptions import corrupted
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.spread import Tally, in_order
from privacy_gate.compute.runners.candidate_pixels import PixelModel, pixel_model, pixels
from privacy_gate.compute.work import Work
from privacy_gate.jobs.kinds import Corrupt


def run_corrupt(jobs: Sequence[Corrupt], work: Work) -> None:
    """Computes all corruptions of the same rows together, so that candidate and images are read only once."""
    tally = Tally("corrupt images", sum(len(job.rows) for job in jobs), work.progress)
    for (recipe, rows), same in groupby(jobs, attrgetter("recipe", "rows")):
        model = pixel_model(recipe, work.inputs.candidate, work.machine)
        images = pixels(recipe, work.inputs.data, rows)
        for job in same:
            work.results.put(job, predict_corrupted(model, images, job, work.machine, tally))


def predict_corrupted(model: PixelModel, images: torch.Tensor, job: Corrupt, machine: Machine, tally: Tally) -> Arrays:
    """The job's result; images (R, 3, S, S) in 0 .. 1. Each row has its own generator, independent of other rows."""
    name = int.from_bytes(job.corruption.encode())
    device, size = machine.torch_device(), machine.images(images.shape[-1])

    def spoiled(place: int) -> torch.Tensor:
        # Keyed by the row's number, not by its place in the batch.
        rng = np.random.default_rng([name, job.severity, job.rows[place]])
        image = images[place].permute(1, 2, 0).numpy()
        return torch.from_numpy(corrupted(image, job.corruption, job.severity, rng)).permute(2, 0, 1)

    def predicted(first: int) -> Ints:
        places = range(first, min(first + size, len(images)))
        with torch.inference_mode():
            classes = model(torch.stack([spoiled(place) for place in places]).to(device)).argmax(1)
        tally.add(len(places))
        return np.asarray(classes.cpu().numpy())

    return {"predicted": np.concatenate(in_order(predicted, range(0, len(images), size), machine, tally))}
