"""Printing: text, tables and the progress bar."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from privacy_gate.progress import Progress, silent

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def say(text: str, *, error: bool = False) -> None:
    """Prints text that may come from a registry; control characters, which could steer a terminal, are replaced."""
    typer.echo(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).rstrip("\n"), err=error)


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "job"), counted(30, "job")
    ('1 job', '30 jobs')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints rows of text, without interpreting rich markup; control characters are replaced, as in `say`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", cell)) for cell in row))
    # A file or a pipe has no width: 200 columns keep the rows on one line.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A rich progress bar on stderr; no bar if stderr is no terminal, or in CI."""
    # A log file keeps every redrawn bar as a line of its own.
    if not sys.stderr.isatty() or os.environ.get("CI"):
        yield silent
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second; seconds per unit if one unit takes longer than a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed or 0.0
            return Text("" if speed == 0 else f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done, total=total)

        yield show
