"""What can go wrong, one exit code each. A blocked model is not an error: these mean "could not decide"."""

from collections.abc import Iterable


def one_line(text: object) -> str:
    """Text from strangers on one line, without control characters or changes of direction: with a line break of its own
    it could forge a line of a CI log, where some lines are commands.

    >>> one_line("a\\n::error::b\\u202ec")
    'a ::error::b\\ufffdc'
    """
    line = " ".join(str(text).split())
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


class GateError(Exception):
    """The gate could not decide. The message says what, where, and what to do next."""

    exit_code = 4


class UndecidedError(GateError):
    """Evidence is missing, too small, or a control of the audit failed."""

    exit_code = 4


class EvidenceError(UndecidedError):
    """Arrays that cannot be judged: wrong shape, NaN, an example never in or never out."""


class ConfigurationError(GateError):
    """Wrong usage, a wrong policy, or a wrong file written by hand."""

    exit_code = 2


class CandidateError(GateError):
    """The candidate or its dossier is unsafe or malformed; nothing of it was loaded."""

    exit_code = 5


class DatasetError(CandidateError):
    """The audit data is not what its manifest says, or cannot be read as images and labels.

    Its message, which may quote the table, is on one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnavailableError(GateError):
    """A registry, a storage or an engine does not answer; trying again may help.

    Its message, which may quote a dossier's address or a server's answer, is on one line.
    """

    exit_code = 6

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RegistryError(UnavailableError):
    """The model registry cannot be reached or refuses."""


class StoreError(UnavailableError):
    """The store cannot be read or written, or what it holds is damaged."""


class ConflictError(GateError):
    """The artifact's bytes or the alias changed since they were judged."""

    exit_code = 7


INTERRUPTED = 130
BLOCKED = 3
APPROVED = 0

# Highest first: several problems in one run exit with the code of the gravest.
PRECEDENCE = (5, 7, 6, 2, 3, 4, 0)


def gravest(codes: Iterable[int]) -> int:
    """The exit code of a run in which all of `codes` apply; 0 only if nothing else does.

    >>> gravest([0, 3, 4])
    3
    """
    found = set(codes)
    return next(code for code in PRECEDENCE if code in found or code == 0)
