"""How long work reports its progress: a call with what is being done and how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called after every unit of work; `done` never decreases within a task."""

    def __call__(self, task: str, done: int, total: int) -> None: ...


def silent(task: str, done: int, total: int) -> None:
    """Reports nothing."""
