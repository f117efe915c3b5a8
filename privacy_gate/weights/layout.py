"""What the readers share: how much is read at most, and tensors laid over the bytes of a file."""

import math
from collections.abc import Callable, Mapping

import torch

from privacy_gate.errors import CandidateError
from privacy_gate.weights.unpickle import StoredTensor

MAX_FILES = 100_000
"""Of one artifact; and modules and tensors of one file."""

MAX_BYTES = 64 << 30
"""Of one artifact, all files together; and of the tensors of one file."""

Tensors = dict[str, torch.Tensor]

Lookup = Callable[[str], bytearray]
"""The bytes of a record by its key."""


def filled(stored: Mapping[str, StoredTensor], lookup: Lookup) -> Tensors:
    """Tensors that view their records: each record is read once, and no tensor reaches out of it."""
    records: dict[str, tuple[torch.dtype, bytearray]] = {}
    views: dict[StoredTensor, torch.Tensor] = {}
    total = 0
    for name, spec in stored.items():
        if spec in views:
            continue
        if spec.key not in records:
            records[spec.key] = (spec.dtype, lookup(spec.key))
        dtype, record = records[spec.key]
        if dtype != spec.dtype:
            raise CandidateError(f"tensor {name[:80]!r} reads as {spec.dtype} what another reads as {dtype}")
        views[spec] = _view(name, spec, record)
        total += views[spec].nbytes
        if total > MAX_BYTES:
            raise CandidateError(f"its tensors have more than {MAX_BYTES:,} bytes")
    return {name: views[spec] for name, spec in stored.items()}


def _view(name: str, spec: StoredTensor, record: bytearray) -> torch.Tensor:
    """The tensor in its record: checked in Python's integers, which do not overflow, before torch sees a number."""
    count, itemsize = math.prod(spec.size), spec.dtype.itemsize
    if not count:
        if math.prod(size or 1 for size in spec.size) * itemsize > MAX_BYTES:
            raise CandidateError(f"tensor {name[:80]!r} is empty, but of absurd size")
        return torch.empty(spec.size, dtype=spec.dtype)
    last = spec.offset + sum((size - 1) * stride for size, stride in zip(spec.size, spec.stride, strict=True))
    # Broadcast tensors, whose elements share bytes, could be of any size: they are refused with the rest.
    if max(last + 1, count) * itemsize > len(record):
        raise CandidateError(f"tensor {name[:80]!r} reaches out of its record of {len(record):,} bytes")
    flat = torch.frombuffer(record, dtype=spec.dtype, count=len(record) // itemsize)
    return flat.as_strided(spec.size, spec.stride, spec.offset)


def one_line(error: Exception) -> str:
    """What a foreign error says about hostile bytes, as one short line of printable text."""
    text = f"{type(error).__name__}: {error}"[:200]
    return "".join(letter if letter.isprintable() else " " for letter in text)
