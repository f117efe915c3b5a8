"""The contents of a stored file: arrays (safetensors), the job's description, the numerics that made it, and a sha256.

The content of a note is text.
"""

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
    """The label of a stored file.

    job     the job's description, from jobs.kinds.describe
    made    the numerics that made it, such as {"torch": version, "device": kind}; empty if unknown
    sha256  over the arrays and `made`
    """

    job: Mapping[str, Any]
    made: Mapping[str, str]
    sha256: str


def pack(job: Job, arrays: Arrays, made: Mapping[str, str]) -> bytes:
    """The bytes of the file. Equal arguments give equal bytes."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    facts = dict(sorted(made.items()))
    header = {"job": json.dumps(describe(job), sort_keys=True), "sha256": _checksum(contiguous, facts)}
    if facts:  # absent if empty, so that the bytes are the same as without the argument
        header["made"] = json.dumps(facts)
    return _in_order(save(contiguous, metadata=header))


def unpack(payload: bytes, path: str) -> tuple[Label, dict[str, NDArray[Any]]]:
    """The label and the arrays. Raises StoreError if any bit of the file differs from what was written."""
    try:
        arrays: dict[str, NDArray[Any]] = load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from error
    label = read_label(payload, path)
    if label.sha256 != _checksum(arrays, label.made):
        raise damaged(path, "its checksum differs")
    return label, arrays


def header_size(start: bytes) -> int:
    """Size in bytes of a file's header (with its own eight bytes of length), from the first eight bytes."""
    return 8 + int.from_bytes(start[:8], "little")


def read_label(start: bytes, path: str) -> Label:
    """The label, from at least the file's first header_size bytes. Raises StoreError if there is no valid label."""
    try:
        header = json.loads(start[8 : header_size(start)])["__metadata__"]
        job, made = json.loads(header["job"]), json.loads(header.get("made", "{}"))
        if not (isinstance(job, dict) and isinstance(made, dict)):
            raise TypeError("its job is not a description")
        return Label(job, {str(name): str(fact) for name, fact in made.items()}, str(header["sha256"]))
    # All that broken or hostile JSON can raise here; RecursionError comes from deep nesting.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its label cannot be read: {error}") from error


def read_note(payload: bytes, path: str) -> str:
    """The text of a note. Raises StoreError if it is empty or not UTF-8."""
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise damaged(path, str(error)) from error
    if not text:
        raise damaged(path, "it is empty")
    return text


def damaged(path: str, reason: str) -> StoreError:
    """The error for a damaged file."""
    return StoreError(f"store: {path} is damaged: {reason}; delete it and run `prepare` again")


def _in_order(payload: bytes) -> bytes:
    """The same file with sorted header entries. safetensors writes them in random order, so the bytes would differ."""
    size = header_size(payload)
    header = json.dumps(json.loads(payload[8:size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # safetensors aligns arrays to eight bytes
    return len(header).to_bytes(8, "little") + header + payload[size:]


def _checksum(arrays: Arrays, made: Mapping[str, str]) -> str:
    """sha256 over each array's name, type, shape and bytes, sorted by name, and then over `made`."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).data)
    if made:  # so that files without `made` keep their checksum
        total.update(json.dumps(dict(sorted(made.items()))).encode())
    return total.hexdigest()
