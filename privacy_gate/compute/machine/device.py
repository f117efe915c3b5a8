"""How fast, never what: nothing here changes a result, so nothing here is in a digest."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from privacy_gate.errors import ConfigurationError

CPU_PIXELS = 16 * 224 * 224
"""Of all images in one forward pass on a CPU."""


FEEDERS = 16
"""Threads that feed a GPU unless a number is asked for: each holds a batch of decoded images, and more than a few
serve all but the smallest backbones."""


@dataclass(frozen=True)
class Machine:
    """What work runs on.

    device   "auto" (a CUDA GPU if there is one, else the CPU), or a torch device: "cpu", "cuda:1"
    workers  threads that decode images and feed them to a GPU; None: one for each core that this process may use, but
             not more than FEEDERS. On a CPU its own threads decode
    batch    images per forward pass; None: 32, and on a CPU fewer large ones, see `images`
    block    references trained stacked in one go; None: as many as suit the caches or the GPU
    threads  CPU threads; None: as many as torch would use (all cores, or OMP_NUM_THREADS)

    Raises ConfigurationError for a number below its least sensible value.
    """

    device: str = "auto"
    workers: int | None = None
    batch: int | None = None
    block: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {"workers": 0, "batch": 1, "block": 1, "threads": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigurationError(f"{name} is {value}, expected at least {lowest}")

    def torch_device(self) -> torch.device:
        """The device. Raises ConfigurationError where torch knows no such device or it is not here."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
            reason = str(error).splitlines()[0]
            raise ConfigurationError(f"device {self.device}: {reason}; use 'auto' or 'cpu'") from error

    def gpus(self) -> int:
        """GPUs that work uses: one, or none on a CPU."""
        return int(self.torch_device().type == "cuda")

    def idle_gpus(self) -> int:
        """GPUs of this machine that work leaves idle though nobody named the one it uses."""
        return torch.cuda.device_count() - 1 if self.device == "auto" and self.gpus() else 0

    def images(self, size: int) -> int:
        """Images of so many pixels a side in one forward pass.

        On a CPU, where freed memory is kept (see allocator), EfficientNet-Lite0 reads 180 images of 224 pixels a second
        sixteen or 32 at a time, and 130 at four or eight; sixteen take half the memory.
        """
        if self.batch is not None:
            return self.batch
        return 32 if self.torch_device().type != "cpu" else min(32, max(1, CPU_PIXELS // size**2))

    def decoders(self) -> int:
        """Threads that decode images."""
        if self.torch_device().type == "cpu":
            return self.cpu_threads()
        return min(FEEDERS, _cores()) if self.workers is None else max(1, self.workers)

    def cpu_threads(self) -> int:
        """How many CPU threads work may use."""
        return self.threads or torch.get_num_threads()

    def computing_threads(self) -> int:
        """How many threads compute side by side: the CPU's, or one that feeds a GPU."""
        return self.cpu_threads() if self.torch_device().type == "cpu" else 1


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads_in_kernels(device: torch.device, threads: int) -> Iterator[None]:
    """On a CPU: so many threads in each kernel. Those that run kernels are to be started inside."""
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded_kernels(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU: one thread per kernel while several blocks are trained side by side."""
    return threads_in_kernels(device, 1)
