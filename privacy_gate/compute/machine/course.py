"""How far the training of references is, counted over the threads that train them."""

from concurrent.futures import CancelledError
from threading import Event, Lock

from privacy_gate.progress import Progress


class Course:
    """How far training is; ends it when nobody waits for the rest."""

    def __init__(self, references: int, epochs: int, progress: Progress) -> None:
        self._references, self._epochs, self._progress = references, epochs, progress
        self._lock, self._trained = Lock(), 0
        self._abandoned = Event()

    def advance(self, references: int) -> None:
        """Counts one more epoch of so many references."""
        if self._abandoned.is_set():
            raise CancelledError
        with self._lock:
            before = self._trained // self._epochs
            self._trained += references
            after = self._trained // self._epochs
            if after > before:
                self._progress("train references", after, self._references)

    def abandon(self) -> None:
        """Ends training at its next epoch: nobody waits for it any more."""
        self._abandoned.set()
