"""Spreads equal tasks over a CPU's threads, each with single-threaded kernels; on a GPU they run one by one."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import TypeVar

from privacy_gate.compute.machine.device import Machine, single_threaded_kernels
from privacy_gate.progress import Progress

Item = TypeVar("Item", bound=Hashable)
Made = TypeVar("Made")


class Tally:
    """Counts a task's finished steps over all threads; stops the threads once the result is no longer needed.

    total  number of units, for instance models in training
    steps  number of steps of each unit, for instance epochs; progress is reported in whole units
    """

    def __init__(self, task: str, total: int, progress: Progress, *, steps: int = 1) -> None:
        self._task, self._total, self._progress, self._steps = task, total, progress, steps
        self._lock, self._done = Lock(), 0
        self._abandoned = Event()

    def go_on(self) -> None:
        """Raises CancelledError after `abandon`; threads call it often."""
        if self._abandoned.is_set():
            raise CancelledError

    def add(self, steps: int = 1) -> None:
        """Counts finished steps and reports progress. Raises CancelledError after `abandon`."""
        self.go_on()
        # The lock also keeps calls of `progress` from overlapping.
        with self._lock:
            before = self._done // self._steps
            self._done += steps
            if (after := self._done // self._steps) > before:
                self._progress(self._task, after, self._total)

    def abandon(self) -> None:
        """Makes each thread stop at its next call of `go_on` or `add`."""
        self._abandoned.set()


def spread(
    make: Callable[[Item], Made], items: Sequence[Item], machine: Machine, tally: Tally
) -> Iterator[tuple[Item, Made]]:
    """Pairs of an item and `make(item)`, as soon as they are computed; `make` must call `tally.go_on` often.

    On a CPU, every thread computes its own items with single-threaded kernels. So threads never wait for each other,
    not even on a shared machine, and results do not depend on the number of threads. The first failure stops all.
    """
    device = machine.torch_device()
    threads = machine.computing_threads()
    with single_threaded_kernels(device), ThreadPoolExecutor(threads) as pool:
        futures = {pool.submit(make, item): item for item in items}
        try:
            for done in as_completed(futures):
                yield futures[done], done.result()
        finally:
            for future in futures:  # cancel before abandoning, so that a thread that stops does not begin another item
                future.cancel()
            if not all(future.done() for future in futures):
                tally.abandon()


def in_order(make: Callable[[Item], Made], items: Sequence[Item], machine: Machine, tally: Tally) -> list[Made]:
    """All results of `spread`, in the order of the items, which must be distinct."""
    results = dict(spread(make, items, machine, tally))
    return [results[item] for item in items]
