"""Computes the results that a verdict needs and the store does not have: the only slow step."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from privacy_gate.auditing.audit import Shard
from privacy_gate.errors import CandidateError, DatasetError
from privacy_gate.gate.case import Case
from privacy_gate.jobs.kinds import Job
from privacy_gate.progress import Progress

if TYPE_CHECKING:
    from privacy_gate.compute.cluster import Cluster
    from privacy_gate.compute.machine.device import Machine


class Prepared(NamedTuple):
    """The outcome of preparing: jobs computed, jobs stored before, and seconds of computing."""

    computed: int
    stored: int
    seconds: float


def prepare(
    case: Case, machine: "Machine", part: Shard, progress: Progress, cluster: "Cluster | None" = None
) -> Prepared:
    """Computes the missing results, here or on a cluster: the candidate's first, then the champion's.

    A champion that cannot be computed does not end the run: the reason is noted, and limits relative to it are
    judged with that reason.
    """
    jobs = part.take(case.jobs)
    candidate_jobs, champion_jobs = ([job for job in jobs if case.of_champion(job) is of] for of in (False, True))
    done = compute(case, candidate_jobs, machine, progress, cluster)
    if not champion_jobs or case.champion is None:
        return done
    began = time.monotonic()
    try:
        more = compute(case, champion_jobs, machine, progress, cluster, case.champion.folder)
    except DatasetError:  # a CandidateError too, but the table is the candidate's: the champion is not to blame
        raise
    except CandidateError as error:
        case.refuse_champion(f"it failed when it was run in place of the candidate: {error}")
        more = Prepared(0, 0, time.monotonic() - began)
    return Prepared(done.computed + more.computed, done.stored + more.stored, done.seconds + more.seconds)


def compute(
    case: Case,
    jobs: Sequence[Job],
    machine: "Machine",
    progress: Progress,
    cluster: "Cluster | None" = None,
    folder: Path | None = None,
) -> Prepared:
    """Computes the jobs whose results are not in the store.

    folder: the files of the model that the jobs are about; None: the candidate's
    """
    # torch takes seconds to import, and only this step needs it.
    from privacy_gate.compute.cluster import run_on_cluster  # noqa: PLC0415
    from privacy_gate.compute.machine.numerics import numerics  # noqa: PLC0415
    from privacy_gate.compute.run import run  # noqa: PLC0415
    from privacy_gate.compute.work import Inputs  # noqa: PLC0415

    missing, candidate = case.missing(jobs), case.candidate
    folder = folder or candidate.folder
    # Jobs that read the round log run on this machine: the log may be larger than everything else together, and is
    # not copied to the cluster.
    remote = [job for job in missing if cluster and not hasattr(job, "rounds")]
    local = [job for job in missing if not cluster or hasattr(job, "rounds")]
    began = time.monotonic()
    if cluster and remote:
        manifest, classes = candidate.dossier.data, candidate.recipe.classes
        run_on_cluster(remote, manifest, classes, folder, machine, case.store, cluster, progress)
    if local:
        inputs = Inputs(case.data, folder, candidate.rounds)
        run(local, inputs, machine, case.store.made_by(numerics(machine)), progress)
    return Prepared(len(missing), len(jobs) - len(missing), time.monotonic() - began)
