"""Shared by the readers: limits on sizes, and tensors as views of the bytes of a file."""

import math
from collections.abc import Callable, Mapping

import torch

from privacy_gate.errors import CandidateError
from privacy_gate.weights.unpickle import StoredTensor

MAX_FILES = 100_000
"""Most files in one artifact, and most modules and tensors in one file."""

MAX_BYTES = 64 << 30
"""Most bytes in one artifact, all files together, and most bytes in the tensors of one file."""

Tensors = dict[str, torch.Tensor]

Lookup = Callable[[str], bytearray]
"""Returns the bytes of a record, by its key."""


def filled(stored: Mapping[str, StoredTensor], lookup: Lookup) -> Tensors:
    """Tensors as views of their records. Each record is read once, and no tensor extends beyond its record.

    Raises CandidateError.
    """
    records: dict[str, tuple[torch.dtype, bytearray]] = {}
    views: dict[StoredTensor, torch.Tensor] = {}
    total = 0
    for name, spec in stored.items():
        if spec in views:  # tied weights: one tensor under several names
            continue
        if spec.key not in records:
            records[spec.key] = (spec.dtype, lookup(spec.key))
        dtype, record = records[spec.key]
        if dtype != spec.dtype:
            raise CandidateError(f"tensor {name[:80]!r} has type {spec.dtype}, but another in its record has {dtype}")
        views[spec] = _view(name, spec, record)
        total += views[spec].nbytes
        if total > MAX_BYTES:
            raise CandidateError(f"its tensors have more than {MAX_BYTES:,} bytes together")
    return {name: views[spec] for name, spec in stored.items()}


def _view(name: str, spec: StoredTensor, record: bytearray) -> torch.Tensor:
    """The tensor as a view of its record.

    All checks use Python integers, which cannot overflow, before torch receives any number.
    """
    count, itemsize = math.prod(spec.size), spec.dtype.itemsize
    if not count:
        if math.prod(size or 1 for size in spec.size) * itemsize > MAX_BYTES:
            raise CandidateError(f"tensor {name[:80]!r} is empty, but its other axes exceed {MAX_BYTES:,} bytes")
        return torch.empty(spec.size, dtype=spec.dtype)
    last = spec.offset + sum((size - 1) * stride for size, stride in zip(spec.size, spec.stride, strict=True))
    # `last` is the index of the last element. `count` refuses broadcast tensors as well: their elements share bytes,
    # so a small record could expand to any size.
    if max(last + 1, count) * itemsize > len(record):
        raise CandidateError(f"tensor {name[:80]!r} extends beyond its record of {len(record):,} bytes")
    flat = torch.frombuffer(record, dtype=spec.dtype, count=len(record) // itemsize)
    return flat.as_strided(spec.size, spec.stride, spec.offset)


def one_line(error: Exception) -> str:
    """The message of a library's error about hostile bytes, as one short line of printable text."""
    text = f"{type(error).__name__}: {error}"[:200]
    return "".join(letter if letter.isprintable() else " " for letter in text)
