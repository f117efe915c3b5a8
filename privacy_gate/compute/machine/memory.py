"""Memory that does not suffice, the host's or a GPU's: told from other faults, and said in the gate's words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from privacy_gate.errors import UnavailableError

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""What torch says, by a plain RuntimeError, where the driver, a library or the host had no memory."""


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what the error says."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


@contextmanager
def memory_needed() -> Iterator[None]:
    """Raises UnavailableError (exit 6) where memory does not suffice; other errors pass as they are."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        said = " ".join(str(error).split()) or "none was left"
        raise UnavailableError(
            f"out of memory: {said}; what is stored stays: end what else uses that memory, or take a larger machine "
            "(--device cpu where a GPU is too small), and run the same command to go on"
        ) from error
