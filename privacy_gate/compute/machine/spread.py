"""Work of equal kind spread over a CPU's threads, each computing by itself; on a GPU one after the other."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import TypeVar

from privacy_gate.compute.machine.device import Machine, single_threaded_kernels
from privacy_gate.progress import Progress

Item = TypeVar("Item", bound=Hashable)
Made = TypeVar("Made")


class Tally:
    """Progress of one task, counted over the threads that work on it; ends their work when the rest is abandoned.

    total  of what is counted, for instance models in training
    steps  that each of the total takes, for instance epochs: progress is reported in whole ones of the total
    """

    def __init__(self, task: str, total: int, progress: Progress, *, steps: int = 1) -> None:
        self._task, self._total, self._progress, self._steps = task, total, progress, steps
        self._lock, self._done = Lock(), 0
        self._abandoned = Event()

    def go_on(self) -> None:
        """Raises CancelledError once what is left is abandoned."""
        if self._abandoned.is_set():
            raise CancelledError

    def add(self, steps: int = 1) -> None:
        """Counts steps that are done. Raises CancelledError as `go_on` does."""
        self.go_on()
        with self._lock:
            before = self._done // self._steps
            self._done += steps
            if (after := self._done // self._steps) > before:
                self._progress(self._task, after, self._total)

    def abandon(self) -> None:
        """Ends each thread's work where it next asks whether to go on."""
        self._abandoned.set()


def spread(
    make: Callable[[Item], Made], items: Sequence[Item], machine: Machine, tally: Tally
) -> Iterator[tuple[Item, Made]]:
    """Each item with what is made of it, as soon as it is there; `make` asks the tally often whether to go on.

    On a CPU every thread makes items of its own with kernels of one thread: they wait for no other, neither here nor
    where others use the machine too, and what is made does not depend on how many there are. One failure ends all.
    """
    device = machine.torch_device()
    threads = machine.computing_threads()
    with single_threaded_kernels(device), ThreadPoolExecutor(threads) as pool:
        made = {pool.submit(make, item): item for item in items}
        try:
            for done in as_completed(made):
                yield made[done], done.result()
        finally:
            for future in made:  # first, lest a thread that is told to end begins another item
                future.cancel()
            if not all(future.done() for future in made):
                tally.abandon()


def in_order(make: Callable[[Item], Made], items: Sequence[Item], machine: Machine, tally: Tally) -> list[Made]:
    """Likewise, all of them, in the order of the items, of which no two are equal."""
    made = dict(spread(make, items, machine, tally))
    return [made[item] for item in items]
