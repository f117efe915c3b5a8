"""Commands that check dossiers and policies before anything is computed."""

from pathlib import Path
from typing import Annotated

import typer

from privacy_gate.cli.terminal import say

dossier = typer.Typer(
    no_args_is_help=True, help="Dossiers: the recipe and data manifest that a producer attaches to a model."
)
policy = typer.Typer(no_args_is_help=True, help="Policies: the limits a model must meet.")


@dossier.command("lint", epilog="Example: privacy-gate dossier lint dossier/ --table")
def dossier_lint(
    path: Annotated[Path, typer.Argument(help="A folder with recipe.yaml and data.yaml.", show_default=False)],
    table: Annotated[bool, typer.Option("--table", help="Also read the audit table and its images.")] = False,
) -> None:
    """Check a dossier before it is attached to a model."""
    from privacy_gate.gate.lint import lint_dossier  # imported here, so that `--help` stays quick

    say("\n".join(lint_dossier(path, read_table=table)))


@policy.command("lint", epilog="Example: privacy-gate policy lint policies/baseline.yaml --holdout 1000")
def policy_lint(
    path: Annotated[Path, typer.Argument(help="A policy file.", show_default=False)],
    holdout: Annotated[int | None, typer.Option(min=0, help="How many holdout examples you have.")] = None,
) -> None:
    """Check a policy, and say how many holdout examples its limits need."""
    from privacy_gate.gate.lint import lint_policy

    say("\n".join(lint_policy(path, holdout)))
