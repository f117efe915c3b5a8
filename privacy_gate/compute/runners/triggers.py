"""The candidate's predictions on the audit's images with known backdoor triggers, and with control patterns."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

from privacy_gate.arrays import Arrays, Ints
from privacy_gate.compute.images.stamps import TRIGGERS, controls
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.spread import Tally, in_order
from privacy_gate.compute.runners.candidate_pixels import finite, pixel_model, pixels
from privacy_gate.compute.work import Work
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Trigger
from privacy_gate.progress import Progress, silent


def run_trigger(jobs: Sequence[Trigger], work: Work) -> None:
    """Tries the triggers on the candidate; jobs on the same rows run together."""
    for (recipe, _), same in groupby(jobs, attrgetter("recipe", "rows")):
        group, inputs = list(same), work.inputs
        results = predict_triggered(recipe, group, inputs.data, inputs.candidate, work.machine, work.progress)
        for job, arrays in zip(group, results, strict=True):
            work.results.put(job, arrays)


def predict_triggered(
    recipe: Recipe,
    jobs: Sequence[Trigger],
    data: AuditData,
    folder: Path,
    machine: Machine,
    progress: Progress = silent,
) -> list[Arrays]:
    """Every job's result, from the candidate's files in `folder`. All jobs must have the same rows.

    The candidate and each image are read once for all patterns; every thread keeps one batch of images in memory.
    """
    model, device = pixel_model(recipe, folder, machine), machine.torch_device()
    stamps = [stamp for job in jobs for stamp in (TRIGGERS[job.trigger], *controls(job.trigger, recipe.side))]
    rows, size = jobs[0].rows, machine.images(recipe.side)
    tally = Tally("try triggers", len(rows) * len(stamps), progress)

    def predicted(first: int) -> Ints:
        images = pixels(recipe, data, rows[first : first + size]).to(device)
        answers = []
        with torch.inference_mode():
            for stamp in stamps:
                answers.append(finite(model(stamp(images))).argmax(1).cpu().numpy())
                tally.add(len(images))
        return np.stack(answers)

    classes = np.concatenate(in_order(predicted, range(0, len(rows), size), machine, tally), axis=1)
    # Stamps are ordered by job, and every job has equally many: its trigger and the controls.
    return [{"predicted": part} for part in np.split(classes, len(jobs))]
