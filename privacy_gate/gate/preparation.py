"""Computing what a verdict needs and the store lacks: the only slow step."""

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
    """What preparing did: jobs computed, jobs whose results were there, and seconds that computing took."""

    computed: int
    stored: int
    seconds: float


def prepare(
    case: Case, machine: "Machine", part: Shard, progress: Progress, cluster: "Cluster | None" = None
) -> Prepared:
    """Computes what the store lacks, here or on a cluster: of the candidate, then of the champion."""
    jobs = part.take(case.jobs)
    own, rival = ([job for job in jobs if case.of_champion(job) is other] for other in (False, True))
    done = compute(case, own, machine, progress, cluster)
    if not rival or case.champion is None:
        return done
    began = time.monotonic()
    try:
        more = compute(case, rival, machine, progress, cluster, case.champion.folder)
    except DatasetError:
        raise
    except CandidateError as error:
        case.refuse_champion(f"put in the candidate's place, it failed: {error}")
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
    """Computes those of the jobs that the store lacks.

    folder: where the files lie of whom the jobs speak of; None: the candidate's."""
    # torch takes seconds to import, and only this step needs it.
    from privacy_gate.compute.cluster import run_on_cluster  # noqa: PLC0415
    from privacy_gate.compute.machine.numerics import numerics  # noqa: PLC0415
    from privacy_gate.compute.run import run  # noqa: PLC0415
    from privacy_gate.compute.work import Inputs  # noqa: PLC0415

    missing, candidate = case.missing(jobs), case.candidate
    folder = folder or candidate.folder
    # A round log may be larger than all the rest; what reads it stays where it is.
    away = [job for job in missing if cluster and not hasattr(job, "rounds")]
    here = [job for job in missing if not cluster or hasattr(job, "rounds")]
    began = time.monotonic()
    if cluster and away:
        manifest, classes = candidate.dossier.data, candidate.recipe.classes
        run_on_cluster(away, manifest, classes, folder, machine, case.store, cluster, progress)
    if here:
        inputs = Inputs(case.data, folder, candidate.rounds)
        run(here, inputs, machine, case.store.made_by(numerics(machine)), progress)
    return Prepared(len(missing), len(jobs) - len(missing), time.monotonic() - began)
