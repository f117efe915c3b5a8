"""Batches of jobs that one shard or task runs together. A job's batch depends only on the job itself."""

from collections.abc import Iterable
from typing import Any

from privacy_gate.jobs.kinds import EMBED_ROWS, Embed, Federate, Job, Probe, TrainReference

REFERENCE_BLOCK = 16
"""References in one batch, which train stacked."""

EMBED_BLOCK = 8
"""Embed jobs in one batch: 2,048 images, which take a GPU some seconds. Sending a task takes a fraction of a second."""


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs in batches: references by blocks of their index, features by blocks of rows.

    A job's batch does not depend on the other jobs, so it is the same whether some results are already stored or are
    planned on another shard.
    """
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        alike.setdefault(_batch(job), []).append(job)
    return list(alike.values())


def _batch(job: Job) -> tuple[Any, ...]:
    """A key that is equal for jobs in the same batch."""
    match job:
        case Embed():
            return (Embed, job.backbone, job.input, job.view, job.first // (EMBED_BLOCK * EMBED_ROWS))
        case TrainReference():
            # A program trains one reference at a time and may take hours, so a batch of several would gain nothing.
            block = 1 if job.recipe.adaptation == "command" else REFERENCE_BLOCK
            return (TrainReference, job.recipe, job.divisor, job.without, job.index // block)
        case Federate() if not job.recipe.trains_network:  # federations that differ in their seed train stacked
            return (Federate, job.recipe, job.adversary, job.byzantine, job.stress)
        case Probe():
            return (Probe, job.recipe)
        case _:
            return (type(job), job)
