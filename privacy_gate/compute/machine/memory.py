"""Recognises errors caused by lack of memory, on the host or a GPU, and turns them into UnavailableError."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from privacy_gate.errors import UnavailableError

_PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""Phrases in torch's plain RuntimeErrors when the driver, a library or the host runs out of memory."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out."""
    # torch.OutOfMemoryError is a RuntimeError, but not every lack of memory raises it: the phrases find the rest.
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)


@contextmanager
def memory_needed() -> Iterator[None]:
    """Raises UnavailableError (exit 6) if memory runs out inside the context; other errors pass unchanged."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        cause = " ".join(str(error).split()) or "none was left"
        raise UnavailableError(
            f"out of memory: {cause}; stored results are kept: stop other processes that use it, or take a larger "
            "machine (--device cpu if a GPU is too small), and run the same command to go on"
        ) from error
