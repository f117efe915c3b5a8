"""Jobs that one shard or one task does together: by what they are, never by how many there are or who does them."""

from collections.abc import Iterable
from typing import Any

from privacy_gate.jobs.kinds import EMBED_ROWS, Embed, Federate, Job, Probe, TrainReference

REFERENCE_BLOCK = 16
"""References of one batch train stacked."""

EMBED_BLOCK = 8
"""Embed jobs of one batch: 2,048 images, some seconds of a GPU, against a fraction of one to send a task."""


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs, batch by batch: references by blocks of their index, features by blocks of rows.

    A job's batch depends on what it is: so what is stored already, or planned elsewhere, stacks no job with others.
    """
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        alike.setdefault(_batch(job), []).append(job)
    return list(alike.values())


def _batch(job: Job) -> tuple[Any, ...]:
    match job:
        case Embed():
            return (Embed, job.backbone, job.input, job.view, job.first // (EMBED_BLOCK * EMBED_ROWS))
        case TrainReference():
            # Programs train one after the other and may take hours: nothing is gained by keeping them together.
            block = 1 if job.recipe.adaptation == "command" else REFERENCE_BLOCK
            return (TrainReference, job.recipe, job.divisor, job.without, job.index // block)
        case Federate() if not job.recipe.trains_network:  # seeds train stacked
            return (Federate, job.recipe, job.adversary, job.byzantine, job.stress)
        case Probe():
            return (Probe, job.recipe)
        case _:
            return (type(job), job)
