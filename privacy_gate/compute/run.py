"""The single entry point for computing jobs: runs them and stores their arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.memory import memory_needed
from privacy_gate.compute.machine.numerics import whole_float32
from privacy_gate.compute.runners.confirm import run_confirm
from privacy_gate.compute.runners.control import run_control
from privacy_gate.compute.runners.corruption import run_corrupt
from privacy_gate.compute.runners.evasion import run_evade, run_universal
from privacy_gate.compute.runners.federate import run_federate
from privacy_gate.compute.runners.invert import run_invert
from privacy_gate.compute.runners.probes import run_probe
from privacy_gate.compute.runners.references import run_references
from privacy_gate.compute.runners.scores import run_score
from privacy_gate.compute.runners.trajectory import run_trajectory
from privacy_gate.compute.runners.trigger_inversion import run_invert_trigger
from privacy_gate.compute.runners.triggers import run_trigger
from privacy_gate.compute.work import Inputs, ResultStore, Work, run_embed
from privacy_gate.jobs.kinds import (
    Confirm,
    Corrupt,
    Embed,
    Evade,
    Federate,
    Invert,
    InvertTrigger,
    Job,
    Probe,
    Score,
    TrainControl,
    TrainReference,
    Trajectory,
    Trigger,
    Universal,
)
from privacy_gate.progress import Progress, silent

Kind = TypeVar("Kind", bound=Job)
Runner = Callable[[Sequence[Any], Work], None]


def _runs(kind: type[Kind], runner: Callable[[Sequence[Kind], Work], None]) -> tuple[type[Job], Runner]:
    """The pair. The type checker rejects a runner of another kind of job."""
    return kind, runner


RUNNERS: Mapping[type[Job], Runner] = dict(
    (
        _runs(Embed, run_embed),
        _runs(Score, run_score),
        _runs(TrainControl, run_control),
        _runs(TrainReference, run_references),
        _runs(Federate, run_federate),
        _runs(Confirm, run_confirm),
        _runs(Trigger, run_trigger),
        _runs(InvertTrigger, run_invert_trigger),
        _runs(Probe, run_probe),
        _runs(Invert, run_invert),
        _runs(Trajectory, run_trajectory),
        _runs(Evade, run_evade),
        _runs(Universal, run_universal),
        _runs(Corrupt, run_corrupt),
    )
)
"""The runner of every kind of job, in the order in which kinds are computed. Embed comes first, because other kinds
read its features."""


def run(
    jobs: Sequence[Job], inputs: Inputs, machine: Machine, results: ResultStore, progress: Progress = silent
) -> None:
    """Computes the jobs in full float32 precision (no TF32), and stores each result as soon as it is computed.

    Raises UnavailableError if memory runs out.
    """
    if unknown := {type(job).__name__ for job in jobs if type(job) not in RUNNERS}:
        raise TypeError(f"nothing computes jobs of kind {', '.join(sorted(unknown))}: add a line to RUNNERS")
    work = Work(inputs, machine, results, progress)
    # Allocator and precision apply to the whole process, so they are set once, around all jobs.
    if machine.torch_device().type == "cpu":
        keep_freed_memory()
    with memory_needed(), whole_float32():
        for kind, runner in RUNNERS.items():
            if alike := [job for job in jobs if type(job) is kind]:
                runner(alike, work)
