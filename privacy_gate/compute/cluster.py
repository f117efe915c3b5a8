"""The same jobs on a Ray cluster: fixed batches of them as tasks that write straight into the store.

A task carries words: jobs, the manifest, where the store is. It reads the audit table by itself and skips what is
stored, so it can be run again wherever a worker died; results never pass through Ray. Ray is imported when a
cluster is used, not before.
"""

import importlib.util
import logging
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.memory import memory_needed
from privacy_gate.compute.machine.numerics import numerics
from privacy_gate.compute.machine.scratch import scratch_folder
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.dossier.dataset import AuditData, DataManifest, read_data
from privacy_gate.errors import ConfigurationError, GateError, UnavailableError
from privacy_gate.jobs.batches import batches
from privacy_gate.jobs.kinds import Embed, Job
from privacy_gate.progress import Progress, silent
from privacy_gate.store import Store

RETRIES = 3
"""How often a task is run again whose worker died. An error of the gate's own is not retried: it would come again."""

WORKERS = 2
"""Threads that feed the GPU of one task, unless a number is asked for: a core each."""

EVEN = 2
"""Tasks for each worker at least: where one of two falls behind, the other has not yet done all that is left."""

OBJECT_STORE = 100 << 20
"""Bytes of shared memory for the candidate's files, where we start the cluster ourselves."""

GRACE = 5
"""Seconds in which a cancelled task may end its programs and delete its temporary files."""

PATIENCE = 10
"""Seconds in which the named cluster must take a connection."""

_ADDRESS = re.compile(r"auto|(ray://)?(?P<host>[^:/]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and how much of a GPU each task takes.

    address        "ray://host:10001", "host:6379" or "auto", as ray.init takes it; None: one started for this run alone
    gpus_per_task  .5: two tasks share a GPU; 0: tasks run on CPUs
    """

    address: str | None = None
    gpus_per_task: float = 0

    def __post_init__(self) -> None:
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            raise ConfigurationError(
                f"--ray-address {self.address}: write ray://host:port, host:port, or auto for the one on this machine"
            )
        whole = float(self.gpus_per_task).is_integer()
        if not (0 <= self.gpus_per_task <= 1 or (self.gpus_per_task > 1 and whole)):
            raise ConfigurationError(f"--gpus-per-task {self.gpus_per_task:g}: write a share of one GPU, such as 0.5")

    def machine(self, machine: Machine) -> Machine:
        """The same settings on a worker, which sees the GPUs of its task and no other.

        Raises ConfigurationError where device and share of a GPU contradict each other.
        """
        on_gpu = self.gpus_per_task > 0
        if machine.device.startswith("cuda:") or (machine.device != "auto" and (machine.device == "cuda") != on_gpu):
            raise ConfigurationError(
                f"--device {machine.device} with --gpus-per-task {self.gpus_per_task:g}: Ray hands out the devices; "
                "leave --device out, and give --gpus-per-task for tasks that need a GPU"
            )
        workers = WORKERS if machine.workers is None else machine.workers  # Ray must know how many cores a task takes
        return replace(machine, device="cuda" if on_gpu else "cpu", workers=workers)


@dataclass(frozen=True)
class Setting:
    """What every task is told: where table and store are, and how to compute.

    classes  of the recipe
    folder   in which relative paths are meant, where the worker has it too
    """

    manifest: DataManifest
    classes: int
    root: str
    machine: Machine
    folder: str


def run_on_cluster(
    jobs: Sequence[Job],
    manifest: DataManifest,
    classes: int,
    candidate: Path,
    machine: Machine,
    store: Store,
    cluster: Cluster,
    progress: Progress = silent,
) -> None:
    """Computes the jobs on the cluster's workers, each result straight into the store.

    Equal to `compute.run.run` on equal hardware, to the byte on CPUs. Workers need this package, and reach
    table and store under the same names as this machine does. Not more tasks are in flight than keep the cluster
    busy; on an interrupt or an error those are cancelled, and what is stored stays.

    Raises ConfigurationError where Ray is missing, UnavailableError where the cluster does not answer, a task's
    workers died again and again, or results do not arrive in the store; and what `run` raises, as it is.
    """
    setting = Setting(manifest, classes, store.root, cluster.machine(machine), str(Path.cwd()))
    files = _files(candidate) if any(map(_reads_candidate, jobs)) else None
    embeds = [job for job in jobs if isinstance(job, Embed)]
    others = [job for job in jobs if not isinstance(job, Embed)]
    with connected(cluster, sum(map(len, (files or {}).values()))) as ray, _translated(ray):
        work = _Work(ray, setting, files, cluster)
        work.do("embed images", divided(batches(embeds), work.slots), progress)
        work.do("train and score", batches(others), progress)
    if lost := store.missing(jobs):
        raise UnavailableError(
            f"store {store.root}: {len(lost)} results that workers computed are not in it as this machine sees it; "
            "name a folder that all machines share, or a URL, and use the same version of privacy-gate everywhere"
        )


def divided(features: Sequence[Sequence[Job]], slots: int) -> list[Sequence[Job]]:
    """Batches of Embed jobs, halved while they are too few to keep `slots` workers busy until the last has ended.

    No part of features is computed with another, so their bytes stay what they are. Each task loads the network once.
    """
    parts = list(features)
    while len(parts) < EVEN * slots and any(len(part) > 1 for part in parts):
        halves = [(part[: -(-len(part) // 2)], part[-(-len(part) // 2) :]) for part in parts]
        parts = [half for pair in halves for half in pair if half]
    return parts


class _Work:
    """Tasks on a connected cluster, `slots` of which it can do at once."""

    def __init__(self, ray: Any, setting: Setting, files: Files | None, cluster: Cluster) -> None:
        self._ray, self._setting, machine = ray, setting, setting.machine
        self._files = None if files is None else ray.put(files)
        cpus = machine.threads or (max(1, machine.workers or 0) if cluster.gpus_per_task else 1)
        self._task = ray.remote(num_cpus=cpus, num_gpus=cluster.gpus_per_task, max_retries=RETRIES)(_do)
        self.slots = _slots(ray.cluster_resources(), cpus, cluster)

    def do(self, name: str, tasks: Sequence[Sequence[Job]], progress: Progress) -> None:
        """Runs the tasks to their end; the first error cancels those in flight."""
        waiting, flying = deque(tasks), dict[Any, int]()
        done, total = 0, sum(len(jobs) for jobs in tasks)
        try:
            while waiting or flying:
                while waiting and len(flying) < 2 * self.slots:
                    jobs = waiting.popleft()
                    files = self._files if any(map(_reads_candidate, jobs)) else None
                    flying[self._task.remote(jobs, self._setting, files)] = len(jobs)
                (finished,), _ = self._ray.wait(list(flying))
                # No longer in flight: Ray 2.60 aborts this process where a task is cancelled that has just ended.
                done += flying.pop(finished)
                self._ray.get(finished)
                progress(name, done, total)
        finally:
            self._cancel(list(flying))

    def _cancel(self, tasks: list[Any]) -> None:
        """Ends the tasks: by an interrupt, which cleans up, and their workers where that takes longer than GRACE."""
        for task in tasks:
            self._ray.cancel(task)
        late = self._ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)[1] if tasks else []
        for task in late:
            self._ray.cancel(task, force=True)


def _do(jobs: Sequence[Job], setting: Setting, files: Files | None) -> None:
    """What a worker does: the jobs that the store lacks."""
    if Path(setting.folder).is_dir():
        os.chdir(setting.folder)
    store = Store(setting.root, numerics(setting.machine))
    missing = store.missing(jobs)
    with scratch_folder() as folder:
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with memory_needed():
            data = _data(setting.manifest, setting.classes)
        run(missing, Inputs(data, folder), setting.machine, store)


@lru_cache(maxsize=1)
def _data(manifest: DataManifest, classes: int) -> AuditData:
    """The table, read once by each worker process."""
    return read_data(manifest, classes)


def _reads_candidate(job: Job) -> bool:
    """Whether the job is about one candidate, whose digest it then names."""
    return hasattr(job, "artifact")


def _files(folder: Path) -> Files:
    """The candidate's files, by their path in its folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _slots(resources: Mapping[str, float], cpus: int, cluster: Cluster) -> int:
    """How many tasks the cluster can run at once now; 1 where it still has to grow.

    Raises ConfigurationError where a cluster of this machine alone has not what a task needs.
    """
    slots = resources.get("CPU", 0) // cpus
    if cluster.gpus_per_task:
        slots = min(slots, resources.get("GPU", 0) // cluster.gpus_per_task)
    if slots < 1 and cluster.address is None:
        raise ConfigurationError(
            f"--engine ray: a task takes {cpus} CPUs and {cluster.gpus_per_task:g} GPUs, and this machine has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; ask for less, or name a --ray-address"
        )
    return max(1, int(slots))


@contextmanager
def connected(cluster: Cluster, shared: int = 0, cpus: int | None = None) -> Iterator[Any]:
    """Ray, connected: to the cluster named, or to one of this machine alone, which ends with the block.

    Such a cluster has `cpus` CPUs (None: all), holds `shared` bytes beside OBJECT_STORE, and listens to nobody but this
    machine, unless the program imported Ray before. Nothing is reported to Ray's makers where the environment does not
    ask for it. A program that is connected already stays so.
    Raises ConfigurationError where Ray is missing, UnavailableError where nobody answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError("--engine ray: Ray is not installed: pip install 'privacy-gate[ray]'")
    _ask(cluster.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address is None:  # makes Ray take the loopback interface; read when Ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Else its workers are nicer than everybody, and wait for whatever runs beside them.
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray  # noqa: PLC0415 - an extra, and slow to import

    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        settings = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
        settings["object_store_memory"] = OBJECT_STORE + 2 * shared
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise _silent(cluster.address, error) from error
    try:
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray's own would end this process with exit code 1
        yield ray
    finally:
        ray.shutdown()


def _ask(address: str | None) -> None:
    """Raises UnavailableError where nobody listens: Ray itself would ask for minutes."""
    matched = _ADDRESS.fullmatch(address or "")
    if matched and matched["host"]:
        try:
            socket.create_connection((matched["host"].strip("[]"), int(matched["port"])), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise _silent(address, error) from error


def _silent(address: str | None, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"--engine ray: cannot reach {address or 'a cluster started here'}: {error}; correct --ray-address, or start "
        "the cluster and run again"
    )


@contextmanager
def _translated(ray: Any) -> Iterator[None]:
    """The gate's own errors as they were raised on the worker; Ray's as an engine that does not answer."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GateError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(f"Ray: {reason}; what is stored stays: run the same command to go on") from error
