"""Progress of the training of references, counted over the threads that train them."""

from concurrent.futures import CancelledError
from threading import Event, Lock

from privacy_gate.progress import Progress


class Course:
    """Counts trained epochs and reports progress; stops training once its result is no longer needed."""

    def __init__(self, references: int, epochs: int, progress: Progress) -> None:
        self._references, self._epochs, self._progress = references, epochs, progress
        self._lock, self._trained = Lock(), 0
        self._abandoned = Event()

    def advance(self, references: int) -> None:
        """Counts one more epoch of this many references. Raises CancelledError after `abandon`."""
        if self._abandoned.is_set():
            raise CancelledError
        with self._lock:
            before = self._trained // self._epochs
            self._trained += references
            after = self._trained // self._epochs
            # Report only when another whole reference's worth of epochs is complete.
            if after > before:
                self._progress("train references", after, self._references)

    def abandon(self) -> None:
        """Makes every thread stop at its next epoch, because the result is no longer needed."""
        self._abandoned.set()
