"""Files of torch.save: a state dict, a checkpoint that wraps one, or a whole module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy_gate.errors import CandidateError
from privacy_gate.weights.archive import open_archive
from privacy_gate.weights.layout import MAX_FILES, Tensors, filled
from privacy_gate.weights.unpickle import MAX_NAME, MAX_PICKLE, Inert, StoredTensor, read_legacy, read_pickle

WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "module")
"""Keys under which training scripts keep a state dict or a module in a checkpoint, up to three inside each other."""


def read_pickled(path: Path) -> Tensors:
    """The tensors in a file of torch.save, by their state-dict names."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            found, places = read_legacy(file)

            def stored(key: str) -> bytearray:
                begin, size = places.get(key, (0, 0))
                file.seek(begin)
                return bytearray(file.read(size))

            return filled(_named(found), stored)
    with open_archive(path) as archive:
        if "data.pkl" not in archive:
            raise CandidateError("no data.pkl is inside: not a file of torch.save")
        found = read_pickle(archive.read("data.pkl", MAX_PICKLE))
        return filled(_named(found), lambda key: archive.read(f"data/{key}"))


def _named(found: Any, depth: int = 3) -> dict[str, StoredTensor]:
    """Names and tensors of whatever was pickled; those in a wrapper where one, and only one, holds any."""
    if isinstance(found, Inert):
        return _module(found)
    if not isinstance(found, dict) or not depth:
        return {}
    loose = _flat(found)
    wrapped = {key: inner for key in WRAPPERS if key in found and (inner := _named(found[key], depth - 1))}
    if not wrapped:
        return loose
    # Numbers beside a wrapper, such as the best accuracy, are a checkpoint's notes.
    if len(wrapped) > 1 or any(tensor.size for tensor in loose.values()):
        places = ", ".join(repr(name[:40]) for name in [*wrapped, *loose][:3])
        raise CandidateError(f"several sets of weights are inside ({places}): save the one that is served, alone")
    return next(iter(wrapped.values()))


def _flat(found: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The entries of a state dict that are tensors. Raises CandidateError for tensors of a kind that is not read."""
    return {
        name: _dense(name, value)
        for name, value in found.items()
        if isinstance(value, StoredTensor)
        or (isinstance(value, Inert) and ("._rebuild" in value.name or value.name.endswith("Storage")))
    }


def _dense(name: str, value: Any) -> StoredTensor:
    if isinstance(value, StoredTensor):
        return value
    kind = value.name if isinstance(value, Inert) else type(value).__name__
    raise CandidateError(f"{name[:80]!r} is a {kind[:80]!r}, not a dense tensor of a plain type: save it as one")


def _module(root: Inert) -> dict[str, StoredTensor]:
    """The state dict of a pickled torch.nn.Module: its parameters and persistent buffers, and its children's."""
    tensors: dict[str, StoredTensor] = {}
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        passing = _entries(module, "_non_persistent_buffers_set", list)
        parameters, buffers, children = (
            _entries(module, kind, dict) for kind in ("_parameters", "_buffers", "_modules")
        )
        seen += 1 + sum(map(len, (passing, parameters, buffers, children)))
        if seen > MAX_FILES or len(prefix) > MAX_NAME:
            raise CandidateError(f"more than {MAX_FILES:,} modules and tensors are inside, or a module holds itself")
        persistent = {name: value for name, value in buffers.items() if name not in passing}
        for name, value in {**parameters, **persistent}.items():
            if value is not None:
                tensors[prefix + name] = _dense(prefix + name, value)
        waiting += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, Inert)]
    return tensors


def _entries(module: Inert, attribute: str, kind: type[Any]) -> Any:
    """The attribute, where it is of the kind that torch gives it; else an empty one."""
    found = module.state.get(attribute)
    return found if isinstance(found, kind) else kind()
