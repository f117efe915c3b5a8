"""Arguments and options that several commands take, and what they stand for."""

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from privacy_gate.cli.terminal import say
from privacy_gate.errors import ConfigurationError

if TYPE_CHECKING:
    from privacy_gate.compute.cluster import Cluster
    from privacy_gate.compute.machine.device import Machine

Uri = Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS", show_default=False)]
PolicyFile = Annotated[Path, typer.Option("--policy", "-p", help="The policy, a YAML file.", show_default=False)]
StoreRoot = Annotated[
    str,
    typer.Option("--store", "-s", envvar="PRIVACY_GATE_STORE", help="Where results are kept: a folder or fsspec URL."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")]
Tracking = Annotated[
    str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="The MLflow server or database.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. Changes speed, never a result.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Threads that feed a GPU with decoded images; default: a core each, with Ray two a task."),
]
Part = Annotated[str, typer.Option("--shard", help="i/n: do part i of n, for a CI matrix that shares one store.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="Where work is done: on this machine, or on a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", envvar="RAY_ADDRESS", help="The cluster; default: one on this machine alone."),
]
Gpus = Annotated[float, typer.Option("--gpus-per-task", min=0, help="Ray: share of a GPU each task takes; 0: CPUs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written to the registry; write nothing.")]
Expect = Annotated[
    str | None,
    typer.Option("--expect-current", help="Refuse unless the alias is at this version now ('none': not set)."),
]
Thumbnails = Annotated[
    Path | None,
    typer.Option("--thumbnails", help="Also write the listed examples' images to this file. Shows training records."),
]

STORE = "privacy-gate-store"
OUTPUT = Path("privacy-gate-report")


def chosen_machine(device: str, workers: int | None, engine: str = "local") -> "Machine":
    """The machine that the options speak of; says on stderr where it leaves GPUs idle."""
    from privacy_gate.compute.machine.device import Machine

    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", device):
        raise ConfigurationError(f"--device {device}: unknown; use auto, cpu, cuda or cuda:N")
    machine = Machine(device=device, workers=workers)
    if engine == "local" and (idle := machine.idle_gpus()):
        hint = "--engine ray --gpus-per-task 1 runs a process on each"
        say(f"one GPU is used, and {idle} more on this machine are idle: {hint}", error=True)
    return machine


def chosen_cluster(engine: str, address: str | None, gpus: float) -> "Cluster | None":
    """The Ray cluster that the options speak of; None for this machine alone."""
    if engine == "local":
        if gpus:
            raise ConfigurationError(f"--gpus-per-task {gpus:g}: tasks are Ray's; add --engine ray")
        return None
    from privacy_gate.compute.cluster import Cluster

    return Cluster(address, gpus)


def chosen_engine(
    device: str, workers: int | None, engine: str, address: str | None, gpus: float
) -> "tuple[Machine, Cluster | None]":
    """The machine, and the Ray cluster if work is done there."""
    cluster = chosen_cluster(engine, address, gpus)
    return chosen_machine(device, workers, engine), cluster


def now() -> datetime.datetime:
    """The time that reports state."""
    return datetime.datetime.now(datetime.UTC)
