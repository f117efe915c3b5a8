"""Errors, each with an exit code. They mean "could not decide"; a blocked model is not an error."""

from collections.abc import Iterable


def one_line(text: object) -> str:
    """Text from strangers in one line, without control characters or changes of text direction.

    With a line break, such text could forge a line of a CI log, in which some lines are commands.

    >>> one_line("a\\n::error::b\\u202ec")
    'a ::error::b\\ufffdc'
    """
    line = " ".join(str(text).split())
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


class GateError(Exception):
    """The gate could not decide. The message says what is wrong, where, and what to do next."""

    exit_code = 4


class UndecidedError(GateError):
    """Evidence is missing or too small, or a control of the audit failed."""

    exit_code = 4


class EvidenceError(UndecidedError):
    """Arrays cannot be judged: wrong shape, NaN, or an example that is never in or never out of the training set."""


class ConfigurationError(GateError):
    """Wrong usage, an invalid policy, or another invalid file written by hand."""

    exit_code = 2


class CandidateError(GateError):
    """The candidate or its dossier is unsafe or malformed. None of its content was executed."""

    exit_code = 5


class DatasetError(CandidateError):
    """The audit data differs from its manifest, or cannot be read as images and labels.

    The message may quote the table, so it is reduced to one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnavailableError(GateError):
    """A registry, a storage or an engine does not answer. Trying again may help.

    The message may quote a URI from a dossier or a server's answer, so it is reduced to one line.
    """

    exit_code = 6

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RegistryError(UnavailableError):
    """The model registry cannot be reached, or refuses the request."""


class StoreError(UnavailableError):
    """The store cannot be read or written, or one of its files is damaged."""


class ConflictError(GateError):
    """The artifact's bytes, an alias or another result changed since they were judged or computed."""

    exit_code = 7


INTERRUPTED = 130
BLOCKED = 3
APPROVED = 0

# Gravest first: a run with several problems exits with the code of the gravest.
PRECEDENCE = (5, 7, 6, 2, 3, 4, 0)


def gravest(codes: Iterable[int]) -> int:
    """The exit code of a run in which all of `codes` apply; 0 only if nothing else does.

    >>> gravest([0, 3, 4])
    3
    """
    distinct = set(codes)
    return next(code for code in PRECEDENCE if code in distinct or code == 0)
