"""Hardware settings: they affect speed but never results, so they are not part of any digest."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from privacy_gate.errors import ConfigurationError

CPU_PIXELS = 16 * 224 * 224
"""Maximum number of pixels, over all images, in one forward pass on a CPU."""


FEEDERS = 16
"""Maximum number of threads that feed a GPU unless `workers` is set: each holds a batch of decoded images in memory,
and only the smallest backbones need more than a few."""


@dataclass(frozen=True)
class Machine:
    """The hardware that jobs run on.

    device   "auto" (a CUDA GPU if there is one, else the CPU), or a torch device: "cpu", "cuda:1"
    workers  threads that decode images and feed them to a GPU; None: one per core that this process may use, at most
             FEEDERS. On a CPU it is ignored: the computing threads decode
    batch    images per forward pass; None: 32, or fewer if images are large and the device is a CPU, see `images`
    block    references trained together, stacked; None: as many as suit the caches or the GPU
    threads  CPU threads; None: as many as torch would use (all cores, or OMP_NUM_THREADS)

    Raises ConfigurationError if a number is below its minimum.
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
        """The device. Raises ConfigurationError if torch does not know it or this machine does not have it."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Creating a tensor finds out whether the device exists here; parsing its name does not.
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:  # "not compiled with CUDA" is an AssertionError in torch
            reason = str(error).splitlines()[0]
            raise ConfigurationError(f"device {self.device}: {reason}; use 'auto' or 'cpu'") from error

    def gpus(self) -> int:
        """Number of GPUs in use: 1, or 0 on a CPU."""
        return int(self.torch_device().type == "cuda")

    def idle_gpus(self) -> int:
        """Number of GPUs that stay idle although the user did not choose one: all but one if device is "auto"."""
        return torch.cuda.device_count() - 1 if self.device == "auto" and self.gpus() else 0

    def images(self, size: int) -> int:
        """Number of images with `size` x `size` pixels in one forward pass.

        Measured on a CPU with freed memory kept (see allocator): EfficientNet-Lite0 processes 180 images of 224 pixels
        per second in batches of 16 or 32, and 130 in batches of 4 or 8; batches of 16 need half the memory of 32.
        """
        if self.batch is not None:
            return self.batch
        return 32 if self.torch_device().type != "cpu" else min(32, max(1, CPU_PIXELS // size**2))

    def decoders(self) -> int:
        """Number of threads that decode images."""
        if self.torch_device().type == "cpu":
            return self.cpu_threads()
        return min(FEEDERS, _cores()) if self.workers is None else max(1, self.workers)

    def cpu_threads(self) -> int:
        """Number of CPU threads that jobs may use."""
        return self.threads or torch.get_num_threads()

    def computing_threads(self) -> int:
        """Number of threads that compute in parallel: the CPU's threads, or a single one that feeds a GPU."""
        return self.cpu_threads() if self.torch_device().type == "cpu" else 1


def _cores() -> int:
    """Number of CPU cores that this process may use; affinity can make it smaller than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads_in_kernels(device: torch.device, threads: int) -> Iterator[None]:
    """On a CPU, sets the number of threads per kernel, for threads that are started inside the context."""
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
    """On a CPU, one thread per kernel while several threads compute in parallel."""
    return threads_in_kernels(device, 1)
