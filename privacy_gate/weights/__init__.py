"""Reads tensors from untrusted files, with one module per kind of file. No code in a file is executed.

`unpickle` reads pickles; `archive` opens zip files.
"""

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from privacy_gate.errors import CandidateError
from privacy_gate.weights.exported import read_exported
from privacy_gate.weights.layout import MAX_BYTES, MAX_FILES, Tensors
from privacy_gate.weights.pickled import read_pickled
from privacy_gate.weights.plain import read_safetensors
from privacy_gate.weights.unpickle import MAX_NAME

SHOWN = 3
"""Number of names that an error lists before `...`."""

Reader = Callable[[Path], Tensors]

KINDS: dict[tuple[str, ...], Reader] = {
    (".safetensors",): read_safetensors,
    (".pt2",): read_exported,
    (".pth", ".pt", ".bin"): read_pickled,
}
"""Readers by file name endings, in order of preference."""


def artifact_digest(folder: Path) -> str:
    """sha256 over one JSON line [path, size, sha256] per file (POSIX path relative to the folder), lines sorted.

    Raises CandidateError for links, devices and other special files, so that no path leads out of the folder, and for
    more than MAX_FILES files or MAX_BYTES bytes.
    """
    lines: list[str] = []
    total = 0
    try:
        for path in _files(folder):
            size = path.stat().st_size
            total += size
            if total > MAX_BYTES:
                raise CandidateError(f"the artifact has more than {MAX_BYTES:,} bytes; log the model without its data")
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(json.dumps([path.relative_to(folder).as_posix(), size, content]))
    except OSError as error:
        raise CandidateError(f"the artifact cannot be read: {error}") from error
    if not lines:
        raise CandidateError("the artifact has no files; log the model again")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    """All files below the folder. Raises CandidateError for anything except plain files and folders."""
    files: list[Path] = []
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            mode = path.lstat().st_mode  # lstat does not follow links, which could lead out of the folder
            if stat.S_ISDIR(mode):
                waiting.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
                name = path.relative_to(folder).as_posix()
                raise CandidateError(f"the artifact holds a {kind}, {name!r}; log the model with plain files only")
            if len(files) + len(waiting) > MAX_FILES:
                raise CandidateError(f"the artifact has more than {MAX_FILES:,} files; log the model without its data")
    return files


def read_weights(folder: Path) -> Tensors:
    """The tensors of the weight file in a downloaded artifact, by state-dict name.

    Raises CandidateError if there is no weight file, if there are several of one kind (see KINDS), or if files of
    different kinds hold different tensors. MLflow may log `model.pth` and `model.pt2` together and serve either, so
    the gate must be sure that it judges the tensors that are served.
    """
    try:
        files = sorted(_files(folder))
    except OSError as error:
        raise CandidateError(f"the artifact cannot be read: {error}") from error
    chosen: list[Path] = []
    for endings in KINDS:
        matching = [path for path in files if path.suffix.lower() in endings]
        if len(matching) > 1:
            names = _some([repr(path.relative_to(folder).as_posix()) for path in matching])
            raise CandidateError(f"the artifact has {len(matching)} weight files ({names}); log a model with one")
        chosen += matching
    if not chosen:
        raise CandidateError("the artifact has no weight file; expected .safetensors, .pt2, .pth, .pt or .bin")
    tensors = read_weights_file(chosen[0])
    for other in chosen[1:]:
        if not _same(tensors, read_weights_file(other)):
            raise CandidateError(
                f"{chosen[0].name} and {other.name} hold different weights, and either may be served; log a model with "
                "one weight file"
            )
    return tensors


def _same(one: Tensors, other: Tensors) -> bool:
    """Whether both have the same names, types and values."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def read_weights_file(path: Path) -> Tensors:
    """The tensors in a file, by state-dict name, all finite. Tensors that share a storage share its memory.

    A file with an unknown ending is read as a file from torch.save. Raises CandidateError with the file's name.
    """
    reader = next((reader for endings, reader in KINDS.items() if path.suffix.lower() in endings), read_pickled)
    try:
        tensors = reader(path)
        if not tensors:
            raise CandidateError("no tensors are inside: log a module that has parameters, or its state dict")
        for name, tensor in tensors.items():
            if len(name) > MAX_NAME or not name.isprintable():
                raise CandidateError(f"tensor {name[:40]!r} has a name that is too long or not printable; rename it")
            _refuse_not_finite(name, tensor)
    except (CandidateError, OSError) as error:
        raise CandidateError(f"{path.name}: {error}") from error
    return tensors


def _refuse_not_finite(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise CandidateError(f"tensor {name!r} holds values that are not finite numbers; train the model again")


def match_strict(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str) -> Tensors:
    """The tensors as a state dict for an architecture: same names, same shapes, converted to its types.

    A prefix `module.` on every name (from DataParallel) is dropped. Counters num_batches_tracked may be absent. A
    floating type may differ from the expected floating type. Raises CandidateError that lists tensors which are
    missing, unexpected, or of another shape or type.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    shared = sorted(set(tensors) & set(expected))
    problems = {
        "missing": sorted(set(expected) - set(tensors) - optional),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in shared
            if tensors[name].shape != expected[name].shape
        ],
        "of another type": [
            f"{name} {tensors[name].dtype}, expected {expected[name].dtype}"
            for name in shared
            if tensors[name].dtype != expected[name].dtype
            and not (tensors[name].is_floating_point() and expected[name].is_floating_point())
        ],
    }
    faults = [f"{len(names)} {problem} ({_some(names)})" for problem, names in problems.items() if names]
    if faults:
        raise CandidateError(
            f"{source} does not fit the architecture of the recipe's backbone: {'; '.join(faults)}; correct the recipe "
            "or log another model"
        )
    matched = {name: tensors.get(name, like).to(like.dtype) for name, like in expected.items()}
    for name in shared:
        if matched[name].dtype != tensors[name].dtype:  # a float64 too large for float32 becomes infinite
            _refuse_not_finite(name, matched[name])
    return matched


def _some(names: list[str]) -> str:
    """The first few names, and `...` if there are more."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
