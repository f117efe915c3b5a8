"""The command `privacy-gate`: parse, call one function, print, exit. The only package that prints.

At the start only typer and rich are imported: `--help` must not wait for torch or mlflow.
"""

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from privacy_gate.cli import advice, documents, reports, showcase, steps, store
from privacy_gate.cli.terminal import say
from privacy_gate.errors import INTERRUPTED, GateError, UnavailableError


class _Gate(TyperGroup):
    """Turns the gate's errors, a lack of memory and an interrupt into one message and an exit code each."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GateError as error:
            # Expected errors are one message; a traceback would hide what to do next.
            say(f"privacy-gate: {error}", error=True)
            raise typer.Exit(error.exit_code) from error
        except MemoryError as error:
            reason = str(error) or "none was left"
            say(
                f"privacy-gate: out of memory: {reason}; free some memory or use a larger machine, then run again",
                error=True,
            )
            raise typer.Exit(UnavailableError.exit_code) from error
        except KeyboardInterrupt as error:
            say("privacy-gate: interrupted; stored results are kept, run the same command to continue", error=True)
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
# `--help` lists the commands in this order. An app added without a name adds its commands at the top level.
for commands in (steps.app, advice.app, reports.app, showcase.app):
    app.add_typer(commands)
app.add_typer(documents.dossier, name="dossier")
app.add_typer(documents.policy, name="policy")
app.add_typer(store.app, name="store")


def _show_version(requested: bool) -> None:
    if requested:
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
    """The entry point of the console script.

    SIGTERM, which CI systems send to cancel a job, is handled like Ctrl-C: programs that the gate started are ended
    and temporary files deleted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
