"""What the candidate says of corrupted images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch

from privacy_gate.compute.candidate_pixels import PixelModel, pixel_model, pixels
from privacy_gate.compute.corruptions import corrupted
from privacy_gate.compute.judged import Arrays
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.work import Work
from privacy_gate.job import Corrupt


def run_corrupt(jobs: Sequence[Corrupt], work: Work) -> None:
    """Every corruption of the rows; candidate and images are read once for all."""
    done = 0
    for (recipe, rows), same in groupby(jobs, attrgetter("recipe", "rows")):
        model = pixel_model(recipe, work.inputs.candidate, work.machine)
        images = pixels(recipe, work.inputs.data, rows)
        for job in same:
            work.results.put(job, predict_corrupted(model, images, job, work.machine))
            done += 1
            work.progress("corrupt images", done, len(jobs))


def predict_corrupted(model: PixelModel, images: torch.Tensor, job: Corrupt, machine: Machine) -> Arrays:
    """The job's result; images (R, 3, S, S) in 0 .. 1. Each row's chance is its own: no other row has a part in it."""
    name = int.from_bytes(job.corruption.encode())

    def spoiled(place: int) -> torch.Tensor:
        rng = np.random.default_rng([name, job.severity, job.rows[place]])
        shown = images[place].permute(1, 2, 0).numpy()
        return torch.from_numpy(corrupted(shown, job.corruption, job.severity, rng)).permute(2, 0, 1)

    predicted, device, size = [], machine.torch_device(), machine.images(images.shape[-1])
    with ThreadPoolExecutor(machine.cpu_threads()) as pool, torch.inference_mode():
        for first in range(0, len(images), size):
            places = range(first, min(first + size, len(images)))
            batch = torch.stack(list(pool.map(spoiled, places))).to(device)
            predicted.append(model(batch).argmax(1).cpu().numpy())
    return {"predicted": np.concatenate(predicted)}
