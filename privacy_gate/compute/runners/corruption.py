"""What the candidate says of corrupted images."""

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
    """Every corruption of the rows; candidate and images are read once for all."""
    tally = Tally("corrupt images", sum(len(job.rows) for job in jobs), work.progress)
    for (recipe, rows), same in groupby(jobs, attrgetter("recipe", "rows")):
        model = pixel_model(recipe, work.inputs.candidate, work.machine)
        images = pixels(recipe, work.inputs.data, rows)
        for job in same:
            work.results.put(job, predict_corrupted(model, images, job, work.machine, tally))


def predict_corrupted(model: PixelModel, images: torch.Tensor, job: Corrupt, machine: Machine, tally: Tally) -> Arrays:
    """The job's result; images (R, 3, S, S) in 0 .. 1. Each row's chance is its own: no other row has a part in it."""
    name = int.from_bytes(job.corruption.encode())
    device, size = machine.torch_device(), machine.images(images.shape[-1])

    def spoiled(place: int) -> torch.Tensor:
        rng = np.random.default_rng([name, job.severity, job.rows[place]])
        shown = images[place].permute(1, 2, 0).numpy()
        return torch.from_numpy(corrupted(shown, job.corruption, job.severity, rng)).permute(2, 0, 1)

    def predicted(first: int) -> Ints:
        places = range(first, min(first + size, len(images)))
        with torch.inference_mode():
            said = model(torch.stack([spoiled(place) for place in places]).to(device)).argmax(1)
        tally.add(len(places))
        return np.asarray(said.cpu().numpy())

    return {"predicted": np.concatenate(in_order(predicted, range(0, len(images), size), machine, tally))}
