"""The command `privacy-gate`: parse, call one function, print, exit. The only package that prints.

Only typer and rich are imported here at the start: `--help` must not wait for torch or mlflow.
"""

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from privacy_gate.cli import advice, documents, reports, showcase, steps, store
from privacy_gate.cli.terminal import say
from privacy_gate.errors import INTERRUPTED, GateError, UnavailableError


class _Gate(TyperGroup):
    """Turns the gate's errors, want of memory and an interrupt into one message and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GateError as error:
            say(f"privacy-gate: {error}", error=True)
            raise typer.Exit(error.exit_code) from error
        except MemoryError as error:
            said = str(error) or "none was left"
            say(f"privacy-gate: out of memory: {said}; free some or take a larger machine, and run again", error=True)
            raise typer.Exit(UnavailableError.exit_code) from error
        except KeyboardInterrupt as error:
            say("privacy-gate: interrupted; what is stored stays, run the same command to go on", error=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Gate,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: privacy-gate demo\n\n"
    "Exit codes: 0 approved, 1 bug, 2 usage or policy, 3 blocked, 4 undecided, 5 candidate refused, "
    "6 registry, storage or engine unavailable, 7 conflict, 130 interrupted. Only 0 promotes.",
)
# Typer lists commands in this order; those of an app without a name are its own.
for commands in (steps.app, advice.app, reports.app, showcase.app):
    app.add_typer(commands)
app.add_typer(documents.dossier, name="dossier")
app.add_typer(documents.policy, name="policy")
app.add_typer(store.app, name="store")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"privacy-gate {version('privacy-gate')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Audit fine-tuned image models in a registry, and promote or block them by a policy."""


def main() -> None:
    """The console script's entry. SIGTERM, by which CI systems cancel, ends it as Ctrl-C does: programs that it started
    are ended, temporary files deleted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
