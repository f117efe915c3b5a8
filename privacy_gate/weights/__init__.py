"""Tensors out of untrusted files, one module for each kind of file. Nothing in them is executed.

`unpickle` reads the pickled ones; `archive` opens their zips.
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
"""Names listed in an error; the rest are counted."""

Reader = Callable[[Path], Tensors]

KINDS: dict[tuple[str, ...], Reader] = {
    (".safetensors",): read_safetensors,
    (".pt2",): read_exported,
    (".pth", ".pt", ".bin"): read_pickled,
}
"""Endings of weight files and what reads them, the preferred kind first."""


def artifact_digest(folder: Path) -> str:
    """sha256 over one JSON line [path, size, sha256] for each file (posix path, relative to folder), lines sorted.

    Raises CandidateError for a link, a device, too many files or bytes: nothing is followed out.
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
        raise CandidateError("the artifact has no files")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    """Every file below the folder. Raises CandidateError for anything but plain files and folders."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                waiting.append(path)
            elif stat.S_ISREG(mode):
                found.append(path)
            else:
                kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
                name = path.relative_to(folder).as_posix()
                raise CandidateError(f"the artifact holds a {kind}, {name!r}; log the model with plain files only")
            if len(found) + len(waiting) > MAX_FILES:
                raise CandidateError(f"the artifact has more than {MAX_FILES:,} files; log the model without its data")
    return found


def read_weights(folder: Path) -> Tensors:
    """The tensors of the weight file in a downloaded artifact, by their state-dict names.

    Raises CandidateError where there is none, or several of one kind (see KINDS), or one of each of
    several kinds that do not hold the same: MLflow serves `model.pth` where `model.pt2` stands beside it,
    and the gate must not judge another file than the one that is served.
    """
    try:
        files = sorted(_files(folder))
    except OSError as error:
        raise CandidateError(f"the artifact cannot be read: {error}") from error
    chosen: list[Path] = []
    for endings in KINDS:
        found = [path for path in files if path.suffix.lower() in endings]
        if len(found) > 1:
            names = _some([repr(path.relative_to(folder).as_posix()) for path in found])
            raise CandidateError(f"the artifact has {len(found)} weight files ({names}); log a model with one")
        chosen += found
    if not chosen:
        raise CandidateError("the artifact has no weight file; expected .safetensors, .pt2, .pth, .pt or .bin")
    tensors = read_weights_file(chosen[0])
    for other in chosen[1:]:
        if not _same(tensors, read_weights_file(other)):
            raise CandidateError(
                f"{chosen[0].name} and {other.name} hold different weights, and either may be the one that is served; "
                "log a model with one weight file"
            )
    return tensors


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def read_weights_file(path: Path) -> Tensors:
    """The tensors in a file, by their state-dict names; every one finite. Tensors of one storage share its memory.

    A file of unknown ending is read as one of torch.save. Raises CandidateError naming the file.
    """
    reader = next((reader for endings, reader in KINDS.items() if path.suffix.lower() in endings), read_pickled)
    try:
        tensors = reader(path)
        if not tensors:
            raise CandidateError("no tensors are inside: log a module of parameters, or its state dict")
        for name, tensor in tensors.items():
            if len(name) > MAX_NAME or not name.isprintable():
                raise CandidateError(f"tensor {name[:40]!r} has a name that no module gives")
            _refuse_not_finite(name, tensor)
    except (CandidateError, OSError) as error:
        raise CandidateError(f"{path.name}: {error}") from error
    return tensors


def _refuse_not_finite(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise CandidateError(f"tensor {name!r} holds values that are not finite numbers; train the model again")


def match_strict(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str) -> Tensors:
    """The tensors for an architecture's state dict, name by name and shape by shape, in its types.

    A `module.` before every name (DataParallel) is dropped; counters num_batches_tracked may be
    absent; one floating type may stand for another. Raises CandidateError that lists what is missing,
    left over, or of another shape or type.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    both = sorted(set(tensors) & set(expected))
    problems = {
        "missing": sorted(set(expected) - set(tensors) - optional),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in both
            if tensors[name].shape != expected[name].shape
        ],
        "of another type": [
            f"{name} {tensors[name].dtype}, expected {expected[name].dtype}"
            for name in both
            if tensors[name].dtype != expected[name].dtype
            and not (tensors[name].is_floating_point() and expected[name].is_floating_point())
        ],
    }
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names]
    if found:
        raise CandidateError(f"{source} does not fit the architecture that the recipe names: {'; '.join(found)}")
    matched = {name: tensors.get(name, like).to(like.dtype) for name, like in expected.items()}
    for name in both:
        if matched[name].dtype != tensors[name].dtype:  # a float64 may be too large for a float32
            _refuse_not_finite(name, matched[name])
    return matched


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
