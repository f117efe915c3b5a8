"""What is in a stored file: the arrays (safetensors), the job in words, which numerics made them, and a sha256; or,
in a note, text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from privacy_gate.arrays import Arrays
from privacy_gate.errors import StoreError
from privacy_gate.jobs.digests import describe
from privacy_gate.jobs.kinds import Job


@dataclass(frozen=True)
class Label:
    """What a file says of itself.

    job     the job's description, as job.describe gives it
    made    which numerics made it, such as {"torch": version, "device": kind}; empty where nobody said
    sha256  over the arrays, and over `made`
    """

    job: Mapping[str, Any]
    made: Mapping[str, str]
    sha256: str


def pack(job: Job, arrays: Arrays, made: Mapping[str, str]) -> bytes:
    """The bytes of the file. Equal arguments give equal bytes."""
    plain = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    facts = dict(sorted(made.items()))
    header = {"job": json.dumps(describe(job), sort_keys=True), "sha256": _checksum(plain, facts)}
    if facts:
        header["made"] = json.dumps(facts)
    return _in_order(save(plain, metadata=header))


def unpack(payload: bytes, path: str) -> tuple[Label, dict[str, NDArray[Any]]]:
    """The label and the arrays. Raises StoreError for a file that is not, to the bit, what was written."""
    try:
        arrays: dict[str, NDArray[Any]] = load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from error
    label = read_label(payload, path)
    if label.sha256 != _checksum(arrays, label.made):
        raise damaged(path, "its checksum differs")
    return label, arrays


def header_size(start: bytes) -> int:
    """Bytes that the label of a file takes, by its first eight."""
    return 8 + int.from_bytes(start[:8], "little")


def read_label(start: bytes, path: str) -> Label:
    """The label, from the file's first header_size bytes, or more. Raises StoreError where there is none."""
    try:
        header = json.loads(start[8 : header_size(start)])["__metadata__"]
        job, made = json.loads(header["job"]), json.loads(header.get("made", "{}"))
        if not (isinstance(job, dict) and isinstance(made, dict)):
            raise TypeError("its job is no description")
        return Label(job, {str(name): str(fact) for name, fact in made.items()}, str(header["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its label cannot be read: {error}") from error


def read_note(payload: bytes, path: str) -> str:
    """The text of a note. Raises StoreError where there is none."""
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise damaged(path, str(error)) from error
    if not text:
        raise damaged(path, "it is empty")
    return text


def damaged(path: str, reason: str) -> StoreError:
    """The error that says so."""
    return StoreError(f"store: {path} is damaged: {reason}; delete it and run `prepare` again")


def _in_order(payload: bytes) -> bytes:
    """The same file with its header's entries sorted: safetensors writes them in an order that chance decides."""
    size = header_size(payload)
    header = json.dumps(json.loads(payload[8:size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # arrays begin at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header + payload[size:]


def _checksum(arrays: Arrays, made: Mapping[str, str]) -> str:
    """sha256 over every array's name, type, shape and bytes, in the order of names, then over `made`."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).data)
    if made:
        total.update(json.dumps(dict(sorted(made.items()))).encode())
    return total.hexdigest()
