"""Results do not depend on the number of threads, and work stops once its results are no longer needed."""

import time
from concurrent.futures import CancelledError
from threading import get_ident

import pytest
import torch

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.spread import Tally, in_order, spread
from privacy_gate.errors import CandidateError
from privacy_gate.progress import silent


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_computed_once_and_counted_with_single_threaded_kernels(threads: int) -> None:
    before, told, seen = torch.get_num_threads(), [], set()

    def make(item: int) -> int:
        seen.add((get_ident(), torch.get_num_threads()))
        time.sleep(0.02 / (1 + item))
        tally.add(item)
        return item * item

    tally = Tally("square", 28, lambda *each: told.append(each))
    found = in_order(make, range(8), Machine(device="cpu", threads=threads), tally)
    assert found == [item * item for item in range(8)]
    assert [each[1] for each in told] == sorted(each[1] for each in told)
    assert told[-1] == ("square", 28, 28)
    assert {kernels for _, kernels in seen} == {1}
    assert len({thread for thread, _ in seen}) <= threads
    assert torch.get_num_threads() == before


def test_a_failure_stops_running_items_and_cancels_the_rest() -> None:
    begun, ended = [], []

    def make(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise CandidateError("damaged")
        try:
            for _ in range(1000):
                time.sleep(0.01)
                tally.go_on()
        except CancelledError:
            ended.append(item)
            raise

    tally = Tally("wait", 100, silent)
    with pytest.raises(CandidateError, match="damaged"):
        list(spread(make, range(100), Machine(device="cpu", threads=2), tally))
    assert len(begun) < 100
    assert sorted(ended) == sorted(item for item in begun if item)  # running items end in any order


def test_closing_the_results_early_waits_for_no_more_items() -> None:
    def make(item: int) -> int:
        for _ in range(1000 * item):
            time.sleep(0.01)
            tally.add()
        return item

    tally = Tally("wait", 1000, silent)
    made = spread(make, range(2), Machine(device="cpu", threads=2), tally)
    began = time.monotonic()
    assert next(made) == (0, 0)
    made.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5


def test_what_takes_several_steps_is_told_when_it_is_whole() -> None:
    told = []
    tally = Tally("train references", 3, lambda *each: told.append(each), steps=4)
    for _ in range(4):
        tally.add(3)  # three models, an epoch of each
    assert [each[1] for each in told] == [1, 2, 3]
    assert told[-1] == ("train references", 3, 3)
    tally.abandon()
    with pytest.raises(CancelledError):
        tally.add(3)
    assert told[-1] == ("train references", 3, 3)
