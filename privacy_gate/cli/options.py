"""Arguments and options that several commands share, and the objects made from them."""

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

Uri = Annotated[
    str, typer.Argument(help="The candidate: models:/NAME/VERSION or models:/NAME@ALIAS.", show_default=False)
]
PolicyFile = Annotated[Path, typer.Option("--policy", "-p", help="The policy, a YAML file.", show_default=False)]
StoreRoot = Annotated[
    str,
    typer.Option(
        "--store", "-s", envvar="PRIVACY_GATE_STORE", help="Where results are stored: a folder or an fsspec URL."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")]
Tracking = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="URI of the MLflow server or database."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. Affects speed, never a result.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Threads that decode images for a GPU; default: one per core, two per Ray task."),
]
Part = Annotated[str, typer.Option("--shard", help="i/n: compute part i of n, for a CI matrix with one shared store.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="Compute on this machine (local) or on a Ray cluster (ray).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", envvar="RAY_ADDRESS", help="Address of the Ray cluster; default: start one on this machine."
    ),
]
Gpus = Annotated[float, typer.Option("--gpus-per-task", min=0, help="Share of a GPU for each Ray task; 0: use CPUs.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be written to the registry, and write nothing.")
]
Expect = Annotated[
    str | None,
    typer.Option(
        "--expect-current", help="Refuse to promote unless the alias is now at this version ('none': not set)."
    ),
]
Thumbnails = Annotated[
    Path | None,
    typer.Option(
        "--thumbnails",
        help="Also write the images of the listed examples to this HTML file. It shows training records.",
    ),
]

STORE = "privacy-gate-store"
OUTPUT = Path("privacy-gate-report")


def chosen_machine(device: str, workers: int | None, engine: str = "local") -> "Machine":
    """The machine that the options describe. Prints a hint on stderr if GPUs would stay idle."""
    from privacy_gate.compute.machine.device import Machine  # imports torch, which takes seconds

    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", device):
        raise ConfigurationError(f"--device {device}: unknown device; use auto, cpu, cuda or cuda:N")
    machine = Machine(device=device, workers=workers)
    # One process uses one GPU. Ray, which uses all of them, needs no hint.
    if engine == "local" and (idle := machine.idle_gpus()):
        idle_gpus = f"{idle} more GPU{' is' if idle == 1 else 's are'} idle"
        say(f"one GPU is used and {idle_gpus}: --engine ray --gpus-per-task 1 runs a process on each", error=True)
    return machine


def chosen_cluster(engine: str, address: str | None, gpus: float) -> "Cluster | None":
    """The Ray cluster that the options describe; None if everything is computed on this machine."""
    if engine == "local":
        if gpus:
            raise ConfigurationError(f"--gpus-per-task {gpus:g}: applies to Ray tasks only; add --engine ray")
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
    """The current time, in UTC, as reports state it."""
    return datetime.datetime.now(datetime.UTC)
