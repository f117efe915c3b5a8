"""The command that measures which changes of the recipe would help a blocked model."""

from typing import Annotated

import typer

from privacy_gate.cli.options import (
    OUTPUT,
    STORE,
    Device,
    Output,
    PolicyFile,
    StoreRoot,
    Tracking,
    Uri,
    Workers,
    chosen_machine,
    now,
)
from privacy_gate.cli.terminal import counted, progress_bar, say

app = typer.Typer()
_FAMILIES = "release, epochs, weight-decay, label-smoothing, random-start, drop or dp-sgd"


@app.command(epilog="Example: privacy-gate advise models:/digits/3 --policy policies/baseline.yaml --epsilon 8")
def advise(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    output: Output = OUTPUT,
    tracking_uri: Tracking = None,
    device: Device = "auto",
    workers: Workers = None,
    references: Annotated[int, typer.Option(min=8, max=10_000, help="Models trained for each alternative.")] = 32,
    epsilon: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Also try DP-SGD at this epsilon; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Try only this kind of change ({_FAMILIES}); repeatable.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Do not try this kind of change; repeatable.")] = None,
) -> None:
    """Measure how much other recipes (fewer epochs, weight decay, ...) would leak, and their accuracy. No verdict."""
    from privacy_gate.dossier.alternatives import families
    from privacy_gate.gate import steps as gate
    from privacy_gate.gate.case import Request, open_case
    from privacy_gate.gate.output import make_folder, write_advice
    from privacy_gate.reports.advice_page import table

    # Checked before anything is pulled: a misspelt family is reported at once.
    tried = families(only or (), skip or ())
    opened = open_case(Request(uri, policy, store, tracking_uri), now())
    with progress_bar() as progress, opened as case:
        make_folder(output)
        advised, computed = gate.advise(
            case,
            chosen_machine(device, workers),
            references=references,
            families=tried,
            epsilons=epsilon or (),
            now=now(),
            progress=progress,
        )
    files = write_advice(advised, output)
    say(table(advised))
    say("\n".join([f"{counted(computed, 'job')} computed", *(f"advice: {path}" for path in files)]))
