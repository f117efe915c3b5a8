"""The callback with which long tasks report progress."""

from typing import Protocol


class Progress(Protocol):
    """Called after every unit of work, with `done` of `total` units. `done` never decreases within a task."""

    def __call__(self, task: str, done: int, total: int) -> None: ...


def silent(task: str, done: int, total: int) -> None:
    """Reports nothing."""
