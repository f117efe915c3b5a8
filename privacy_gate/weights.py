"""Tensors out of untrusted files. Nothing in them is executed: see `unpickle` for the pickled ones."""

import hashlib
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from privacy_gate.errors import CandidateError
from privacy_gate.unpickle import Inert, StoredTensor, read_legacy, read_pickle

MAX_FILES = 100_000
MAX_BYTES = 64 << 30
"""Of one artifact, all files together."""

SHOWN = 3
"""Names listed in an error; the rest are counted."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "module")
"""Keys under which training scripts keep a state dict in a checkpoint; tried in this order."""

# torch.export's codes of element types.
_EXPORTED = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}

Tensors = dict[str, torch.Tensor]


def artifact_digest(folder: Path) -> str:
    """sha256 over one JSON line [path, size, sha256] for each file, sorted by path (posix, relative).

    Raises CandidateError for a link, a device, too many files or bytes: nothing is followed out.
    """
    lines: list[str] = []
    total = 0
    for path in _files(folder):
        size = path.stat().st_size
        total += size
        if len(lines) >= MAX_FILES or total > MAX_BYTES:
            raise CandidateError(f"the artifact has more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes")
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(json.dumps([path.relative_to(folder).as_posix(), size, content]))
    if not lines:
        raise CandidateError("the artifact has no files")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
                raise CandidateError(f"the artifact holds a {kind}, {name!r}; log the model with plain files only")
            if stat.S_ISREG(mode):
                yield path


def read_weights(folder: Path) -> Tensors:
    """The tensors of the one weight file in a downloaded artifact, by their state-dict names.

    safetensors are preferred to pt2 archives, and these to .pth, .pt and .bin. Raises CandidateError
    where there is none, or several of one kind.
    """
    for endings in ((".safetensors",), (".pt2",), (".pth", ".pt", ".bin")):
        found = sorted(path for path in _files(folder) if path.suffix in endings)
        if len(found) > 1:
            names = ", ".join(path.relative_to(folder).as_posix() for path in found[:SHOWN])
            raise CandidateError(f"the artifact has {len(found)} weight files ({names}); log a model with one")
        if found:
            return read_weights_file(found[0])
    raise CandidateError("the artifact has no weight file; expected .safetensors, .pt2, .pth, .pt or .bin")


def read_weights_file(path: Path) -> Tensors:
    """The tensors in a file, by their state-dict names; every one finite. Raises CandidateError naming the file."""
    readers: dict[str, Callable[[Path], Tensors]] = {".safetensors": _safetensors, ".pt2": _exported}
    try:
        tensors = readers.get(path.suffix, _pickled)(path)
        if not tensors:
            raise CandidateError("no tensors are inside")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CandidateError(f"tensor {name!r} holds values that are not finite numbers")
    except CandidateError as error:
        raise CandidateError(f"{path.name}: {error}") from error
    return tensors


def match_strict(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str) -> Tensors:
    """The tensors for an architecture's state dict, name by name and shape by shape, in its types.

    A `module.` before every name (DataParallel) is dropped; counters num_batches_tracked may be
    absent. Raises CandidateError that lists what is missing, left over, or of another shape.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(set(expected) - set(tensors) - optional),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": sorted(
            f"{name} {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in set(tensors) & set(expected)
            if tensors[name].shape != expected[name].shape
        ),
        "of another type": sorted(
            f"{name} {tensors[name].dtype}"
            for name in set(tensors) & set(expected)
            if tensors[name].is_floating_point() != expected[name].is_floating_point()
        ),
    }
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names]
    if found:
        raise CandidateError(f"{source} does not fit the architecture that the recipe names: {'; '.join(found)}")
    return {name: tensors.get(name, like).to(like.dtype) for name, like in expected.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _safetensors(path: Path) -> Tensors:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CandidateError(f"not a sound safetensors file: {error}") from error


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """A zip as torch writes it: stored, unencrypted, plain names; and its records without the outermost folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            records: dict[str, zipfile.ZipInfo] = {}
            for record in archive.infolist():
                name = record.filename
                if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
                    raise CandidateError(f"record {name!r} has a name that leads out of the archive")
                if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                    raise CandidateError(f"record {name!r} is compressed or encrypted; torch stores records plainly")
                inner = name.partition("/")[2]
                if inner in records:
                    raise CandidateError(f"record {name!r} stands twice")
                records[inner] = record
            if sum(record.file_size for record in records.values()) > path.stat().st_size:
                raise CandidateError("its records claim more bytes than the file has")
            yield archive, records
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError, struct.error) as error:
        raise CandidateError(f"not a sound archive: {error}") from error


Lookup = Callable[[str], bytes]


def _pickled(path: Path) -> Tensors:
    """A state dict, a checkpoint that wraps one, or a whole module, as torch.save writes them."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            found, records = read_legacy(file)
            return _filled(_named(found), lambda key: records[key])
    with _archive(path) as (archive, entries):
        if "data.pkl" not in entries:
            raise CandidateError("no data.pkl is inside: not a file of torch.save")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CandidateError("its byte order is not little-endian: save it again on such a machine")
        stored = _named(read_pickle(archive.read(entries["data.pkl"])))

        def lookup(key: str) -> bytes:
            if f"data/{key}" not in entries:
                raise CandidateError(f"record data/{key} is missing")
            return archive.read(entries[f"data/{key}"])

        return _filled(stored, lookup)


def _named(found: Any) -> dict[str, StoredTensor]:
    """Names and tensors of whatever was pickled."""
    if isinstance(found, Inert):
        return _module(found)
    if isinstance(found, dict):
        for key in WRAPPERS:
            inner = found.get(key)
            if isinstance(inner, dict | Inert) and not isinstance(inner, StoredTensor):
                return _named(inner) if isinstance(inner, Inert) else _flat(inner)
        return _flat(found)
    raise CandidateError("neither a state dict nor a module is inside")


def _flat(found: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, StoredTensor)}


def _module(root: Inert) -> dict[str, StoredTensor]:
    """The state dict of a pickled torch.nn.Module: its parameters and persistent buffers, and its children's."""
    tensors: dict[str, StoredTensor] = {}
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        if seen > MAX_FILES:
            raise CandidateError(f"more than {MAX_FILES:,} modules are inside, or one holds itself")
        passing = module.state.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(module, kind):
                if isinstance(value, StoredTensor) and not (isinstance(passing, set) and name in passing):
                    tensors[prefix + name] = value
        waiting += [
            (f"{prefix}{name}.", child) for name, child in _entries(module, "_modules") if isinstance(child, Inert)
        ]
    return tensors


def _entries(module: Inert, kind: str) -> list[tuple[str, Any]]:
    found = module.state.get(kind)
    return [(name, value) for name, value in found.items() if isinstance(name, str)] if isinstance(found, dict) else []


def _exported(path: Path) -> Tensors:
    """The weight records of a torch.export archive; its graph, constants and sample inputs are not read."""
    with _archive(path) as (archive, records):
        name = "data/weights/model_weights_config.json"
        if name not in records:
            raise CandidateError(f"no {name} is inside: not a file of torch.export.save")
        stored = {}
        try:
            for tensor, entry in json.loads(archive.read(records[name]))["config"].items():
                stored[tensor] = _exported_tensor(tensor, entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CandidateError(f"{name} is broken: {type(error).__name__}: {error}") from error

        def lookup(key: str) -> bytes:
            if f"data/weights/{key}" not in records:
                raise CandidateError(f"record data/weights/{key} is missing")
            return archive.read(records[f"data/weights/{key}"])

        return _filled(stored, lookup)


def _exported_tensor(name: str, entry: Mapping[str, Any]) -> StoredTensor:
    if entry["use_pickle"]:
        raise CandidateError(f"tensor {name!r} is pickled inside the archive: log the model as safetensors")
    meta = entry["tensor_meta"]
    if meta["dtype"] not in _EXPORTED:
        raise CandidateError(f"tensor {name!r} has element type {meta['dtype']}, which is not read")
    size, stride = ([_natural(number["as_int"]) for number in meta[part]] for part in ("sizes", "strides"))
    offset = _natural(meta["storage_offset"]["as_int"])
    return StoredTensor(str(entry["path_name"]), _EXPORTED[meta["dtype"]], offset, tuple(size), tuple(stride))


def _natural(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no size")
    return number


def _filled(stored: Mapping[str, StoredTensor], lookup: Lookup) -> Tensors:
    """Tensors from their records; each record is read once and no tensor reaches out of it."""
    records: dict[str, bytearray] = {}
    tensors: Tensors = {}
    total = 0
    for name, spec in stored.items():
        if spec.key not in records:
            records[spec.key] = bytearray(lookup(spec.key))
        record = records[spec.key]
        if len(spec.size) != len(spec.stride):
            raise CandidateError(f"tensor {name!r} has {len(spec.size)} sizes and {len(spec.stride)} strides")
        count = math.prod(spec.size)
        reach = (
            0
            if count == 0
            else spec.offset + 1 + sum((size - 1) * stride for size, stride in zip(spec.size, spec.stride, strict=True))
        )
        total += count * spec.dtype.itemsize
        if reach * spec.dtype.itemsize > len(record) or total > MAX_BYTES or count * spec.dtype.itemsize > len(record):
            raise CandidateError(f"tensor {name!r} reaches out of its record of {len(record):,} bytes")
        if count == 0:
            tensors[name] = torch.empty(spec.size, dtype=spec.dtype)
            continue
        flat = torch.frombuffer(record, dtype=spec.dtype, count=len(record) // spec.dtype.itemsize)
        tensors[name] = flat.as_strided(spec.size, spec.stride, spec.offset).clone()
    return tensors
