"""The round log: what a federation's server saw, one safetensors file for each round.

A file `round-000012.safetensors` holds the global model before round 12, tensors `global/NAME`, and what each client
sent, `client/PLACE/NAME`: its own model minus the global one. PLACE counts the clients from 0 in the order of the
names that the file's metadata list, under the one key `privacy_gate`, as JSON {format, round, clients, examples}.
Rounds may be left out, and so may tensors: the last layer alone is enough where only a head is judged. A round that
could not be logged, since a client sent NaN or the registry was away, is one that is left out: it has no file, and the
numbers of the others are as they were.

The files come from the candidate's run, and are as untrusted as its weights.
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
"""Of one log, all rounds together."""

MAX_ROUNDS = 100_000
MAX_NAME = 200
"""Characters of a client's or a tensor's name."""

_FILE = re.compile(r"round-(\d{6})\.safetensors\Z")


def round_named(path: str) -> int | None:
    """The round that a file of this name, or path, holds; None for another name."""
    found = _FILE.match(path.rpartition("/")[2])
    return int(found[1]) if found else None


def updates_from(local: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """A client's update from its own model and the global one before the round: local - weights, tensor by tensor."""
    return {name: tensor - weights[name] for name, tensor in local.items()}


@dataclass(frozen=True, eq=False)
class Round:
    """Round `index`, counted from 1.

    weights   the global model before the round, by tensor name
    updates   what each client sent, by client and tensor name: its model minus the global one, shapes as in weights
    examples  rows that each client trained on; empty where they are not known
    """

    index: int
    weights: Arrays
    updates: Mapping[str, Arrays]
    examples: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what no round can be."""
        if not 1 <= self.index < 10**6:
            raise ConfigurationError(f"round {self.index}: count rounds from 1, to 999,999 at most")
        if not self.updates or not self.weights:
            raise ConfigurationError(f"round {self.index}: there are no {'updates' if self.weights else 'weights'}")
        if self.examples and (self.examples.keys() != self.updates.keys() or min(self.examples.values()) < 1):
            raise ConfigurationError(f"round {self.index}: give the examples of exactly the clients, each at least 1")
        for name in (*self.updates, *self.weights):
            if not 0 < len(name) <= MAX_NAME or not name.isprintable():
                raise ConfigurationError(
                    f"round {self.index}: the name {name[:40]!r} is empty, too long or not printable"
                )
        first = next(iter(self.updates.values()))
        for client, update in self.updates.items():
            if not update or update.keys() != first.keys() or not update.keys() <= self.weights.keys():
                raise ConfigurationError(
                    f"round {self.index}: client {client!r} sent other tensors than the rest, or than the model has"
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
            if tensor.dtype.kind not in "fiu" or not np.isfinite(tensor).all():
                raise ConfigurationError(f"round {self.index}: {name} holds what are not finite numbers")


def write_round(folder: Path, entry: Round, only: Collection[str] | None = None) -> Path:
    """Writes the round's file into the folder; `only`: the tensors that are kept. Returns the file.

    Raises ConfigurationError where `only` names a tensor that the model has not.
    """
    if only is not None:
        if absent := sorted(set(only) - set(entry.weights)):
            raise ConfigurationError(
                f"only names {absent[0]}, which the model has not: {sorted(entry.weights)[:5]} ..."
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
    said = {
        "format": FORMAT,
        "round": entry.index,
        "clients": clients,
        "examples": [int(entry.examples[client]) for client in clients] if entry.examples else None,
    }
    path = folder / f"round-{entry.index:06d}.safetensors"
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={KEY: json.dumps(said)})
    return path


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Said(Record):
    """The metadata of a round's file."""

    format: int
    round: int
    clients: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100_000)]
    examples: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RoundLog:
    """The rounds in a folder; each is read when it is asked for.

    files   by round, ascending
    digest  sha256 over one JSON line [name, sha256] for each file
    """

    files: Mapping[int, Path]
    digest: str

    @classmethod
    def open(cls, folder: Path) -> "RoundLog":
        """The log in the folder, every file hashed. Raises CandidateError for anything else in it, or nothing."""
        files: dict[int, Path] = {}
        try:
            for path in sorted(folder.iterdir()):
                index = round_named(path.name)
                if index is None or not stat.S_ISREG(path.lstat().st_mode):
                    raise CandidateError(f"round log: {path.name[:80]!r} is no round; log rounds with log_round alone")
                files[index] = path
            if sum(path.stat().st_size for path in files.values()) > MAX_BYTES or len(files) > MAX_ROUNDS:
                raise CandidateError(
                    f"round log: more than {MAX_BYTES:,} bytes; log fewer rounds, or only= the last layer"
                )
            lines = []
            for path in files.values():
                with path.open("rb") as file:
                    lines.append(json.dumps([path.name, hashlib.file_digest(file, "sha256").hexdigest()]))
        except OSError as error:
            raise CandidateError(f"round log: cannot be read: {error}") from error
        if not files:
            raise CandidateError("round log: the folder has no rounds; log some with privacy_gate.log_round")
        return cls(files, hashlib.sha256("\n".join(lines).encode()).hexdigest())

    @property
    def indices(self) -> tuple[int, ...]:
        """Which rounds there are, ascending."""
        return tuple(self.files)

    def clients(self) -> list[str]:
        """Everyone who took part in some round, sorted; no tensor is read. Raises CandidateError as `rounds` does."""
        found: set[str] = set()
        for path in self.files.values():
            with _named(path):
                found.update(_load(path, whole=False)[0].clients)
        return sorted(found)

    def rounds(self) -> Iterator[Round]:
        """Every round in turn. Raises CandidateError, naming the file, for one that is not sound."""
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
    """What is wrong with the file is the candidate's mistake, and says which file it is."""
    try:
        yield
    except ConfigurationError as error:
        raise CandidateError(f"round log: {path.name}: {error}") from error


def _load(path: Path, *, whole: bool) -> tuple[_Said, Arrays]:
    """What the file's metadata say, and its tensors; none of them where it is not read whole."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys()) if whole else []
            tensors = {name: np.asarray(file.get_tensor(name)) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"not a sound safetensors file: {' '.join(str(error).split())[:200]}") from error
    try:
        told = json.loads(metadata.get(KEY, "null"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigurationError("its metadata are not JSON") from error
    if not isinstance(told, dict):
        raise ConfigurationError(f"its metadata have no {KEY}; write it with privacy_gate.log_round")
    said = parse(told, _Said, "metadata")
    if said.format != FORMAT:
        raise ConfigurationError(f"format {said.format}, which this version does not read; it reads {FORMAT}")
    if len(set(said.clients)) < len(said.clients):
        raise ConfigurationError("a client stands twice in its metadata")
    if said.examples is not None and len(said.examples) != len(said.clients):
        raise ConfigurationError("its metadata have other numbers of clients and of examples")
    return said, tensors


def _read(path: Path) -> Round:
    said, tensors = _load(path, whole=True)
    weights = _below(tensors, "global/")
    updates = {client: _below(tensors, f"client/{place}/") for place, client in enumerate(said.clients)}
    if len(weights) + sum(map(len, updates.values())) != len(tensors):
        raise ConfigurationError("it holds tensors of no client that its metadata name")
    return Round(
        said.round,
        weights,
        updates,
        dict(zip(said.clients, said.examples, strict=True)) if said.examples is not None else {},
    )


def _below(tensors: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
