"""Batches of jobs that one shard or task runs together. A job's batch depends only on the job itself."""

from collections.abc import Hashable, Iterable

from privacy_gate.jobs.kinds import Job


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs in batches: references by blocks of their index, features by blocks of rows.

    A job's batch does not depend on the other jobs, so it is the same whether some results are already stored or are
    planned on another shard.
    """
    alike: dict[Hashable, list[Job]] = {}
    for job in jobs:
        alike.setdefault((type(job), job.batch), []).append(job)
    return list(alike.values())
