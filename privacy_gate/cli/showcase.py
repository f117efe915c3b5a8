"""Commands that need no model: the demo and the list of attacks."""

from pathlib import Path
from typing import Annotated

import typer

from privacy_gate.cli.options import now
from privacy_gate.cli.reports import summary
from privacy_gate.cli.terminal import progress_bar, say, say_table
from privacy_gate.errors import GateError

app = typer.Typer()


@app.command(epilog="Example: privacy-gate demo --folder demo")
def demo(
    folder: Annotated[Path, typer.Option(help="A new folder for the registry, the store and the reports.")] = Path(
        "demo"
    ),
) -> None:
    """Run the gate on three real models: one leaks, one is approved, one comes from a federation that attacks break."""
    from privacy_gate.demo.story import run_demo

    with progress_bar() as progress:
        outcomes = run_demo(folder, now(), progress)
    for number, outcome in enumerate(outcomes):
        if number:
            say("")
        say(f"== {outcome.title}")
        say(summary(outcome.report))
        say("\n".join(f"   {line}" for line in outcome.lines))
    # The demo also tests an installation: other verdicts mean that something in it is broken.
    if any(outcome.report.exit_code != outcome.expected for outcome in outcomes):
        raise GateError(
            "the demo expects the verdicts blocked, approved, blocked and got others: please report this run"
        )


@app.command(epilog="Example: privacy-gate attacks")
def attacks() -> None:
    """List the membership attacks: the least release, knowledge, needs, cost and assumptions of each."""
    from privacy_gate.attacks import ATTACKS

    rows = (
        (
            name,
            attack.view,
            "pool" if attack.pool else "population",
            attack.needs,
            attack.cost,
            attack.assumes,
            attack.source,
        )
        for name, attack in ATTACKS.items()
    )
    say_table(("attack", "release", "knows", "needs", "cost", "assumes", "source"), rows)
