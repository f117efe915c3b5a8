"""Jobs that one shard or one task does together: by what they are, never by how many there are or who does them."""

from collections.abc import Hashable, Iterable

from privacy_gate.jobs.kinds import Job


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs, batch by batch: references by blocks of their index, features by blocks of rows.

    A job's batch depends on what it is: so what is stored already, or planned elsewhere, stacks no job with others.
    """
    alike: dict[Hashable, list[Job]] = {}
    for job in jobs:
        alike.setdefault((type(job), job.batch), []).append(job)
    return list(alike.values())
