"""Runs jobs on a Ray cluster: fixed batches of jobs become tasks that write directly to the store.

A task carries only descriptions: jobs, the manifest, the store's address. It reads the audit table itself and skips
stored results, so it can be repeated if a worker dies. Results never pass through Ray. Ray is imported only when a
cluster is used.
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
"""How often a task is repeated if its worker dies. The gate's own errors are not retried, because they would recur."""

WORKERS = 2
"""Threads that feed the GPU of one task, one per core, unless `workers` is set."""

EVEN = 2
"""Minimum number of tasks per worker: if one worker is slow, the others still have tasks to take over."""

OBJECT_STORE = 100 << 20
"""Bytes of shared memory for a cluster that this process starts, in addition to the candidate's files."""

GRACE = 5
"""Seconds that a cancelled task has to stop its programs and delete its temporary files."""

PATIENCE = 10
"""Seconds that the cluster has to accept a connection."""

_ADDRESS = re.compile(r"auto|(ray://)?(?P<host>[^:/]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Cluster:
    """Which cluster to use, and how much of a GPU each task takes.

    address        "ray://host:10001", "host:6379" or "auto", as in ray.init; None: a new cluster, for this run only
    gpus_per_task  0.5: two tasks share a GPU; 0: tasks run on CPUs
    """

    address: str | None = None
    gpus_per_task: float = 0

    def __post_init__(self) -> None:
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            raise ConfigurationError(
                f"--ray-address {self.address}: write ray://host:port, host:port, or auto for this machine's cluster"
            )
        whole = float(self.gpus_per_task).is_integer()
        if not (0 <= self.gpus_per_task <= 1 or (self.gpus_per_task > 1 and whole)):
            raise ConfigurationError(
                f"--gpus-per-task {self.gpus_per_task:g}: write a share of one GPU, such as 0.5, or a whole number"
            )

    def machine(self, machine: Machine) -> Machine:
        """The same settings for a worker, which sees only the GPUs of its task.

        Raises ConfigurationError if `device` and `gpus_per_task` contradict each other.
        """
        on_gpu = self.gpus_per_task > 0
        if machine.device.startswith("cuda:") or (machine.device != "auto" and (machine.device == "cuda") != on_gpu):
            raise ConfigurationError(
                f"--device {machine.device} with --gpus-per-task {self.gpus_per_task:g}: Ray assigns the devices; "
                "leave --device out, and set --gpus-per-task for tasks that need a GPU"
            )
        workers = WORKERS if machine.workers is None else machine.workers  # Ray needs to know the cores per task
        return replace(machine, device="cuda" if on_gpu else "cpu", workers=workers)


@dataclass(frozen=True)
class Setting:
    """Settings that all tasks share: the addresses of table and store, and how to compute.

    classes  number of classes in the recipe
    root     address of the store
    folder   base of relative paths, if the worker has this folder too
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
    """Computes the jobs on the cluster's workers; each writes its results directly to the store.

    Equal to `compute.run.run` on equal hardware; on CPUs, equal to the byte. Workers need this package, and must reach
    table and store under the same names as this machine. Only as many tasks are in flight as keep the cluster busy; an
    interrupt or an error cancels them, and stored results are kept.

    Raises ConfigurationError if Ray is missing; UnavailableError if the cluster does not answer, the workers of a task
    die repeatedly, or results do not arrive in the store; and the errors of `run`, unchanged.
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
            f"store {store.root}: this machine does not see {len(lost)} results that workers computed; name a folder "
            "that all machines share, or a URL, and use the same version of privacy-gate everywhere"
        )


def divided(features: Sequence[Sequence[Job]], slots: int) -> list[Sequence[Job]]:
    """Batches of Embed jobs, split in halves while there are too few to keep `slots` workers busy to the end.

    Parts of features are computed separately, so splitting does not change their bytes. Batches are no smaller than
    needed, because each task loads the network once.
    """
    parts = list(features)
    while len(parts) < EVEN * slots and any(len(part) > 1 for part in parts):
        halves = [(part[: -(-len(part) // 2)], part[-(-len(part) // 2) :]) for part in parts]
        parts = [half for pair in halves for half in pair if half]
    return parts


class _Work:
    """Runs tasks on a connected cluster, which has room for `slots` tasks at once."""

    def __init__(self, ray: Any, setting: Setting, files: Files | None, cluster: Cluster) -> None:
        self._ray, self._setting, machine = ray, setting, setting.machine
        self._files = None if files is None else ray.put(files)
        cpus = machine.threads or (max(1, machine.workers or 0) if cluster.gpus_per_task else 1)
        self._task = ray.remote(num_cpus=cpus, num_gpus=cluster.gpus_per_task, max_retries=RETRIES)(_do)
        self.slots = _slots(ray.cluster_resources(), cpus, cluster)

    def do(self, name: str, tasks: Sequence[Sequence[Job]], progress: Progress) -> None:
        """Runs all tasks; the first error cancels the tasks in flight."""
        waiting, flying = deque(tasks), dict[Any, int]()
        done, total = 0, sum(len(jobs) for jobs in tasks)
        try:
            while waiting or flying:
                # Twice as many tasks as slots, so that a worker never waits for this process to submit the next one.
                while waiting and len(flying) < 2 * self.slots:
                    jobs = waiting.popleft()
                    files = self._files if any(map(_reads_candidate, jobs)) else None
                    flying[self._task.remote(jobs, self._setting, files)] = len(jobs)
                (finished,), _ = self._ray.wait(list(flying))
                # Remove it before `get` may raise: Ray 2.60 aborts this process if a finished task is cancelled.
                done += flying.pop(finished)
                self._ray.get(finished)
                progress(name, done, total)
        finally:
            self._cancel(list(flying))

    def _cancel(self, tasks: list[Any]) -> None:
        """Interrupts the tasks, so that they can clean up; kills the workers of tasks that need longer than GRACE."""
        for task in tasks:
            self._ray.cancel(task)
        late = self._ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)[1] if tasks else []
        for task in late:
            self._ray.cancel(task, force=True)


def _do(jobs: Sequence[Job], setting: Setting, files: Files | None) -> None:
    """The function that a worker runs: computes those of the jobs that are not stored yet."""
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
    """The table; each worker process reads it only once."""
    return read_data(manifest, classes)


def _reads_candidate(job: Job) -> bool:
    """Whether the job reads the candidate's files; it then has the candidate's digest in `artifact`."""
    return hasattr(job, "artifact")


def _files(folder: Path) -> Files:
    """The contents of the candidate's files, by path relative to its folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _slots(resources: Mapping[str, float], cpus: int, cluster: Cluster) -> int:
    """Number of tasks that the cluster can run at once now; 1 if it still has to grow.

    Raises ConfigurationError if the cluster is only this machine, and it is too small for one task.
    """
    slots = resources.get("CPU", 0) // cpus
    if cluster.gpus_per_task:
        slots = min(slots, resources.get("GPU", 0) // cluster.gpus_per_task)
    if slots < 1 and cluster.address is None:
        raise ConfigurationError(
            f"--engine ray: a task takes {cpus} CPUs and {cluster.gpus_per_task:g} GPUs, but this machine has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; lower --workers or --gpus-per-task, or name "
            "a --ray-address"
        )
    return max(1, int(slots))


@contextmanager
def connected(cluster: Cluster, shared: int = 0, cpus: int | None = None) -> Iterator[Any]:
    """The module ray, connected to the named cluster, or to a new one on this machine that ends with the context.

    A new cluster has `cpus` CPUs (None: all) and memory for `shared` bytes in addition to OBJECT_STORE. It accepts
    connections only from this machine, unless the program imported Ray before. Usage statistics are not sent to Ray's
    developers unless the environment enables them. If the program is already connected, that connection is used and
    kept. Raises ConfigurationError if Ray is missing, UnavailableError if the cluster does not answer.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError("--engine ray: Ray is not installed: pip install 'privacy-gate[ray]'")
    _ask(cluster.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address is None:  # makes Ray use the loopback interface; Ray reads it when it is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # By default, Ray's workers run at a lower priority and so wait for all other processes.
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray  # noqa: PLC0415 - an extra, and slow to import

    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        settings = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
        settings["object_store_memory"] = OBJECT_STORE + 2 * shared
    # Ray replaces the handler of SIGTERM; the program's own is restored after ray.init.
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise _silent(cluster.address, error) from error
    try:
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray's handler would end this process with exit code 1
        yield ray
    finally:
        ray.shutdown()


def _ask(address: str | None) -> None:
    """Raises UnavailableError if no server listens at the address: Ray itself would retry for minutes."""
    matched = _ADDRESS.fullmatch(address or "")
    if matched and matched["host"]:
        try:
            socket.create_connection((matched["host"].strip("[]"), int(matched["port"])), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise _silent(address, error) from error


def _silent(address: str | None, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"--engine ray: cannot reach {address or 'the cluster started on this machine'}: {error}; correct "
        "--ray-address, or start the cluster and run again"
    )


@contextmanager
def _translated(ray: Any) -> Iterator[None]:
    """Raises the gate's own errors as the worker raised them, and Ray's errors as UnavailableError."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GateError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(f"Ray: {reason}; stored results are kept: run the same command to go on") from error
