"""The round log: the updates that a federation's server received, in one safetensors file per round.

A file `round-000012.safetensors` holds the global model before round 12 as tensors `global/NAME`, and each client's
update (its local model minus the global one) as tensors `client/PLACE/NAME`. The file's metadata has one key,
`privacy_gate`, with the JSON {format, round, clients, examples}; PLACE is the index, from 0, in that list of clients.

Rounds may be left out, and so may tensors: the last layer is enough if only a head is judged. If a round could not be
logged, because a client sent NaN or the registry was unreachable, it has no file and the other rounds keep their
numbers.

The files come from the candidate's run and are as untrusted as its weights.
"""

import hashlib
import json
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from privacy_gate.arrays import Arrays
from privacy_gate.documents import Record, parse
from privacy_gate.errors import CandidateError, ConfigurationError

FORMAT = 1
KEY = "privacy_gate"
MAX_BYTES = 64 << 30
"""Most bytes of one log, all rounds together."""

MAX_ROUNDS = 100_000
MAX_NAME = 200
"""Most characters in the name of a client or a tensor."""

# \Z, because $ would also accept a line break at the end of the name.
_FILE = re.compile(r"round-(\d{6})\.safetensors\Z")


def round_named(path: str) -> int | None:
    """The index of the round in a file with this name or path; None if it is not the name of a round's file."""
    matched = _FILE.match(path.rpartition("/")[2])
    return int(matched[1]) if matched else None


def updates_from(local: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """A client's update: its local model minus the global model before the round, tensor by tensor."""
    return {name: tensor - weights[name] for name, tensor in local.items()}


@dataclass(frozen=True, eq=False)
class Round:
    """Round `index`, counted from 1.

    weights   the global model before the round, by tensor name
    updates   each client's model minus the global one, by client and tensor name, with shapes as in weights
    examples  number of rows that each client trained on; empty if unknown
    """

    index: int
    weights: Arrays
    updates: Mapping[str, Arrays]
    examples: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigurationError for an invalid round."""
        if not 1 <= self.index < 10**6:
            raise ConfigurationError(f"round {self.index}: count rounds from 1, to 999,999 at most")
        if not self.updates or not self.weights:
            raise ConfigurationError(
                f"round {self.index}: there are no {'updates' if self.weights else 'weights'}; log the global model "
                "and at least one client's update"
            )
        if self.examples and (self.examples.keys() != self.updates.keys() or min(self.examples.values()) < 1):
            raise ConfigurationError(
                f"round {self.index}: give examples for exactly the clients with updates, each at least 1"
            )
        for name in (*self.updates, *self.weights):
            if not 0 < len(name) <= MAX_NAME or not name.isprintable():
                raise ConfigurationError(
                    f"round {self.index}: the name {name[:40]!r} is empty, longer than {MAX_NAME} characters or not "
                    "printable; rename the client or tensor"
                )
        first = next(iter(self.updates.values()))
        for client, update in self.updates.items():
            if not update or update.keys() != first.keys() or not update.keys() <= self.weights.keys():
                raise ConfigurationError(
                    f"round {self.index}: client {client!r} sent other tensors than the first client, or tensors that "
                    "the model does not have; log the same tensors for every client"
                )
            for name, tensor in update.items():
                if tensor.shape != self.weights[name].shape:
                    raise ConfigurationError(
                        f"round {self.index}: client {client!r} sent {name} of shape {tensor.shape}, the model has "
                        f"{self.weights[name].shape}"
                    )
        for tensors in (self.weights, *self.updates.values()):
            self._refuse_not_numbers(tensors)

    def _refuse_not_numbers(self, tensors: Arrays) -> None:
        for name, tensor in tensors.items():
            # Floats and integers. Other kinds, such as text or objects, have no finite values to test.
            if tensor.dtype.kind not in "fiu" or not np.isfinite(tensor).all():
                raise ConfigurationError(f"round {self.index}: {name} holds values that are not finite numbers")


def write_round(folder: Path, entry: Round, only: Collection[str] | None = None) -> Path:
    """Writes the round's file into the folder and returns its path. only: names of the tensors to keep; None: all.

    Raises ConfigurationError if `only` names a tensor that the model does not have.
    """
    if only is not None:
        if absent := sorted(set(only) - set(entry.weights)):
            raise ConfigurationError(
                f"only names {absent[0]}, which the model does not have; it has {sorted(entry.weights)[:5]} ..."
            )
        entry = Round(
            entry.index,
            {name: entry.weights[name] for name in only},
            {client: {name: update[name] for name in only} for client, update in entry.updates.items()},
            entry.examples,
        )
    tensors = {f"global/{name}": tensor for name, tensor in entry.weights.items()}
    for place, update in enumerate(entry.updates.values()):
        tensors |= {f"client/{place}/{name}": tensor for name, tensor in update.items()}
    clients = list(entry.updates)
    metadata = {
        "format": FORMAT,
        "round": entry.index,
        "clients": clients,
        "examples": [int(entry.examples[client]) for client in clients] if entry.examples else None,
    }
    path = folder / f"round-{entry.index:06d}.safetensors"
    # safetensors needs contiguous arrays, and a transposed tensor is a view.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={KEY: json.dumps(metadata)})
    return path


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Metadata(Record):
    """The metadata of a round's file."""

    format: int
    round: int
    clients: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100_000)]
    examples: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RoundLog:
    """The rounds in a folder. A round is read only when it is needed.

    files   file by round, in ascending order
    digest  sha256 over one JSON line [name, sha256] per file
    """

    files: Mapping[int, Path]
    digest: str

    @classmethod
    def open(cls, folder: Path) -> "RoundLog":
        """Opens the log in a folder and hashes its files. Raises CandidateError if it is empty or holds other files."""
        files: dict[int, Path] = {}
        try:
            for path in sorted(folder.iterdir()):
                index = round_named(path.name)
                # lstat: a symbolic link could lead to a file outside the log.
                if index is None or not stat.S_ISREG(path.lstat().st_mode):
                    raise CandidateError(f"round log: {path.name[:80]!r} is no round; write logs only with log_round")
                files[index] = path
            # Before hashing, so that an oversized log is refused at once.
            if sum(path.stat().st_size for path in files.values()) > MAX_BYTES or len(files) > MAX_ROUNDS:
                raise CandidateError(
                    f"round log: more than {MAX_BYTES:,} bytes or {MAX_ROUNDS:,} rounds; log fewer rounds, or pass "
                    "only= with the last layer's tensors"
                )
            lines = []
            for path in files.values():
                with path.open("rb") as file:
                    lines.append(json.dumps([path.name, hashlib.file_digest(file, "sha256").hexdigest()]))
        except OSError as error:
            raise CandidateError(f"round log: cannot be read: {error}") from error
        if not files:
            raise CandidateError("round log: the folder has no rounds; log them with privacy_gate.log_round")
        return cls(files, hashlib.sha256("\n".join(lines).encode()).hexdigest())

    @property
    def indices(self) -> tuple[int, ...]:
        """Indices of the logged rounds, in ascending order."""
        return tuple(self.files)

    def clients(self) -> list[str]:
        """Names of all clients in any round, sorted. Reads no tensor. Raises CandidateError as `rounds` does."""
        names: set[str] = set()
        for path in self.files.values():
            with _named(path):
                names.update(_load(path, whole=False)[0].clients)
        return sorted(names)

    def rounds(self) -> Iterator[Round]:
        """Every round, in ascending order. Raises CandidateError with the file's name for an invalid file."""
        for index, path in self.files.items():
            with _named(path):
                entry = _read(path)
            if entry.index != index:
                raise CandidateError(
                    f"round log: {path.name} says that it is round {entry.index}; log the rounds again"
                )
            yield entry


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns a ConfigurationError into a CandidateError that names the file, since the candidate supplied it."""
    try:
        yield
    except ConfigurationError as error:
        raise CandidateError(f"round log: {path.name}: {error}") from error


def _load(path: Path, *, whole: bool) -> tuple[_Metadata, Arrays]:
    """The file's metadata, and its tensors if whole is set. Raises ConfigurationError for an invalid file."""
    try:
        with safe_open(path, framework="numpy") as file:
            raw = file.metadata() or {}
            names = list(file.keys()) if whole else []  # tensors are read only by name, so none are read here
            tensors = {name: np.asarray(file.get_tensor(name)) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"not a sound safetensors file: {' '.join(str(error).split())[:200]}") from error
    try:
        document = json.loads(raw.get(KEY, "null"))
    except (json.JSONDecodeError, RecursionError) as error:  # RecursionError: hostile nesting
        raise ConfigurationError(f"its metadata {KEY} are not JSON; write it with privacy_gate.log_round") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"its metadata have no {KEY}; write it with privacy_gate.log_round")
    metadata = parse(document, _Metadata, "metadata")
    if metadata.format != FORMAT:
        raise ConfigurationError(f"format {metadata.format} is not supported by this version; expected {FORMAT}")
    if len(set(metadata.clients)) < len(metadata.clients):
        raise ConfigurationError("a client is listed twice in its metadata")
    if metadata.examples is not None and len(metadata.examples) != len(metadata.clients):
        raise ConfigurationError(
            f"its metadata list {len(metadata.clients)} clients but {len(metadata.examples)} numbers of examples"
        )
    return metadata, tensors


def _read(path: Path) -> Round:
    metadata, tensors = _load(path, whole=True)
    weights = _below(tensors, "global/")
    updates = {client: _below(tensors, f"client/{place}/") for place, client in enumerate(metadata.clients)}
    # Every tensor must belong to the model or a listed client: stray ones would go unchecked.
    if len(weights) + sum(map(len, updates.values())) != len(tensors):
        raise ConfigurationError("it holds tensors that belong to no client in its metadata")
    return Round(
        metadata.round,
        weights,
        updates,
        dict(zip(metadata.clients, metadata.examples, strict=True)) if metadata.examples is not None else {},
    )


def _below(tensors: Arrays, prefix: str) -> Arrays:
    """The tensors whose names start with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
