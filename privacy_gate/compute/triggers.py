"""What the candidate makes of known backdoor triggers on the audit's own images."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

from privacy_gate.candidate import Recipe
from privacy_gate.compute.candidate_pixels import finite, pixel_model, pixels
from privacy_gate.compute.judged import Arrays
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.stamps import TRIGGERS
from privacy_gate.compute.work import Work
from privacy_gate.dataset import AuditData
from privacy_gate.job import Trigger


def run_trigger(jobs: Sequence[Trigger], work: Work) -> None:
    """Tries the triggers on the candidate, recipe by recipe."""
    done = 0
    for recipe, same in groupby(jobs, attrgetter("recipe")):
        for job, arrays in predict_triggered(recipe, list(same), work.inputs.data, work.inputs.candidate, work.machine):
            work.results.put(job, arrays)
            done += 1
            work.progress("try triggers", done, len(jobs))


def predict_triggered(
    recipe: Recipe, jobs: Sequence[Trigger], data: AuditData, folder: Path, machine: Machine
) -> Iterator[tuple[Trigger, Arrays]]:
    """Every job with its result, from the candidate's files in `folder`, which are read once."""
    model, device = pixel_model(recipe, folder, machine), machine.torch_device()
    size = machine.images(recipe.input.size if recipe.input else 1)
    for job in jobs:
        found, stamp = [], TRIGGERS[job.trigger]
        with torch.inference_mode():
            for first in range(0, len(job.rows), size):
                shown = stamp(pixels(recipe, data, job.rows[first : first + size])).to(device)
                found.append(finite(model(shown)).argmax(1).cpu().numpy())
        yield job, {"predicted": np.concatenate(found)}
