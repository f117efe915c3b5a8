"""What the candidate makes of known backdoor triggers on the audit's own images."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

from privacy_gate.candidate import Recipe
from privacy_gate.compute.backbone import build, candidate_tensors
from privacy_gate.compute.embed import decode, transform_of
from privacy_gate.compute.judged import Arrays
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.parts import changed
from privacy_gate.compute.stamps import triggered
from privacy_gate.compute.work import Work
from privacy_gate.dataset import AuditData
from privacy_gate.errors import DatasetError
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
    shape, image = recipe.input, data.image
    if shape is None or image is None:
        raise DatasetError("triggers are put on images; the table holds embeddings")
    device, transform = machine.torch_device(), transform_of(shape)
    model = build(recipe.backbone, recipe.classes)
    model.load_state_dict(candidate_tensors(folder, recipe, changed(recipe)))
    model.to(device).eval()
    size = machine.images(shape.size)
    for job in jobs:
        found = []
        with torch.inference_mode():
            for first in range(0, len(job.rows), size):
                batch = [decode(image(row), transform) for row in job.rows[first : first + size]]
                shown = triggered(torch.stack(batch), shape, job.trigger).to(device)
                found.append(model(shown).argmax(1).cpu().numpy())
        yield job, {"predicted": np.concatenate(found)}
