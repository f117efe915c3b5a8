"""The commands of the gate: the whole pass at once, or step by step."""

from typing import TYPE_CHECKING, Annotated

import typer

from privacy_gate.cli.options import (
    OUTPUT,
    STORE,
    Device,
    DryRun,
    Engine,
    Expect,
    Gpus,
    Output,
    Part,
    PolicyFile,
    RayAddress,
    StoreRoot,
    Thumbnails,
    Tracking,
    Uri,
    Workers,
    chosen_engine,
    now,
)
from privacy_gate.cli.reports import decide, summary
from privacy_gate.cli.terminal import counted, progress_bar, say

if TYPE_CHECKING:
    from privacy_gate.compute.cluster import Cluster
    from privacy_gate.compute.machine.device import Machine
    from privacy_gate.gate.preparation import Prepared

app = typer.Typer()


@app.command(epilog="Example: privacy-gate check models:/digits@candidate --policy policies/baseline.yaml")
def check(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    output: Output = OUTPUT,
    tracking_uri: Tracking = None,
    device: Device = "auto",
    workers: Workers = None,
    promote: Annotated[bool, typer.Option("--promote/--no-promote", help="Write the decision to the registry.")] = True,
    expect_current: Expect = None,
    dry_run: DryRun = False,
    thumbnails: Thumbnails = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    gpus_per_task: Gpus = 0,
) -> None:
    """Run the whole pass: pull, measure, judge, report, promote or block."""
    from privacy_gate.gate import steps as gate
    from privacy_gate.gate.case import Request

    machine, cluster = chosen_engine(device, workers, engine, ray_address, gpus_per_task)
    with progress_bar() as progress:
        report, files, prepared = gate.check(
            Request(uri, policy, store, tracking_uri),
            output=output,
            machine=machine,
            now=now(),
            progress=progress,
            thumbnails=thumbnails,
            cluster=cluster,
        )
    say(price(prepared, machine, cluster))
    # The report is printed before the registry is touched: it is not lost if promotion fails.
    say(summary(report))
    say("\n".join(f"report: {path}" for path in files))
    if promote:
        decide(report, output, tracking_uri, expect_current=expect_current, dry_run=dry_run)
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example: privacy-gate prepare models:/digits/3 --policy policies/baseline.yaml --shard 2/4")
def prepare(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    tracking_uri: Tracking = None,
    device: Device = "auto",
    workers: Workers = None,
    shard: Part = "1/1",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    gpus_per_task: Gpus = 0,
) -> None:
    """Compute what the policy needs: the slow, resumable step. It never writes to the registry."""
    from privacy_gate.auditing.audit import Shard
    from privacy_gate.gate.case import Request, open_case
    from privacy_gate.gate.preparation import prepare

    # Options are checked before the model is pulled: a typo should not cost a download.
    part = Shard.parse(shard)
    machine, cluster = chosen_engine(device, workers, engine, ray_address, gpus_per_task)
    opened = open_case(Request(uri, policy, store, tracking_uri), now())
    with progress_bar() as progress, opened as case:
        prepared = prepare(case, machine, part, progress, cluster)
    say(price(prepared, machine, cluster))


def price(prepared: "Prepared", machine: "Machine", cluster: "Cluster | None") -> str:
    """How many jobs were computed, and for how long.

    GPU-seconds are only given without a cluster: its workers are not counted, and may share GPUs.
    """
    unit = "GPU-seconds" if cluster is None and machine.gpus() else "s"
    computed = counted(prepared.computed, "job")
    stored = f"{prepared.stored} {'was' if prepared.stored == 1 else 'were'} stored already"
    return f"{computed} computed, {stored}; {prepared.seconds:.0f} {unit}"


@app.command(epilog="Example: privacy-gate audit models:/digits/3 --policy policies/baseline.yaml")
def audit(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    output: Output = OUTPUT,
    tracking_uri: Tracking = None,
    thumbnails: Thumbnails = None,
) -> None:
    """Judge the results that `prepare` stored and write the report (takes seconds, no GPU)."""
    from privacy_gate.gate import steps as gate
    from privacy_gate.gate.case import Request

    with progress_bar() as progress:
        report, files = gate.audit(
            Request(uri, policy, store, tracking_uri),
            output=output,
            now=now(),
            progress=progress,
            thumbnails=thumbnails,
        )
    say(summary(report))
    say("\n".join(f"report: {path}" for path in files))
    raise typer.Exit(report.exit_code)
