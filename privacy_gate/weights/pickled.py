"""Files from torch.save: a state dict, a checkpoint that contains one, or a whole module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy_gate.errors import CandidateError
from privacy_gate.weights.archive import open_archive
from privacy_gate.weights.layout import MAX_FILES, Tensors, filled
from privacy_gate.weights.unpickle import MAX_NAME, MAX_PICKLE, Inert, StoredTensor, read_legacy, read_pickle

WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "module")
"""Keys under which training scripts store a state dict or a module in a checkpoint, nested up to three levels deep."""


def read_pickled(path: Path) -> Tensors:
    """The tensors in a file from torch.save, by state-dict name. Raises CandidateError."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # not a zip file, so the format from before torch 1.6
            file.seek(0)
            content, places = read_legacy(file)

            def storage_bytes(key: str) -> bytearray:
                begin, size = places.get(key, (0, 0))  # an unknown key gives an empty record, which `filled` refuses
                file.seek(begin)
                return bytearray(file.read(size))

            return filled(_named(content), storage_bytes)
    with open_archive(path) as archive:
        if "data.pkl" not in archive:
            raise CandidateError("no data.pkl is inside: not a file from torch.save")
        content = read_pickle(archive.read("data.pkl", MAX_PICKLE))
        return filled(_named(content), lambda key: archive.read(f"data/{key}"))


def _named(content: Any, depth: int = 3) -> dict[str, StoredTensor]:
    """Tensors in a pickled object, by name. If the object is a checkpoint, the tensors of its only wrapper.

    Raises CandidateError if it holds several sets of weights: any of them could be served.
    """
    if isinstance(content, Inert):
        return _module(content)
    if not isinstance(content, dict) or not depth:
        return {}
    loose = _flat(content)
    wrapped = {key: inner for key in WRAPPERS if key in content and (inner := _named(content[key], depth - 1))}
    if not wrapped:
        return loose
    # A scalar tensor next to a wrapper, such as the best accuracy, is a note and not a weight.
    if len(wrapped) > 1 or any(tensor.size for tensor in loose.values()):
        places = ", ".join(repr(name[:40]) for name in [*wrapped, *loose][:3])
        raise CandidateError(f"several sets of weights are inside ({places}): save only the set that is served")
    return next(iter(wrapped.values()))


def _flat(state: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The entries of a state dict that are tensors. Raises CandidateError for a tensor of an unsupported kind."""
    # An Inert that stands for another rebuild function or a storage is such a tensor (sparse, quantized).
    return {
        name: _dense(name, value)
        for name, value in state.items()
        if isinstance(value, StoredTensor)
        or (isinstance(value, Inert) and ("._rebuild" in value.name or value.name.endswith("Storage")))
    }


def _dense(name: str, value: Any) -> StoredTensor:
    """The value if it is a dense tensor of a supported type. Raises CandidateError otherwise."""
    if isinstance(value, StoredTensor):
        return value
    kind = value.name if isinstance(value, Inert) else type(value).__name__
    raise CandidateError(f"{name[:80]!r} is a {kind[:80]!r}, not a dense tensor of a supported type: save it as one")


def _module(root: Inert) -> dict[str, StoredTensor]:
    """The state dict of a pickled torch.nn.Module: parameters and persistent buffers of it and its children.

    The fields are those that torch.nn.Module.state_dict reads.
    """
    tensors: dict[str, StoredTensor] = {}
    # A loop instead of recursion, with a count of all entries: a hostile module may contain itself.
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        transient = _entries(module, "_non_persistent_buffers_set", list)
        parameters, buffers, children = (
            _entries(module, kind, dict) for kind in ("_parameters", "_buffers", "_modules")
        )
        seen += 1 + sum(map(len, (transient, parameters, buffers, children)))
        if seen > MAX_FILES or len(prefix) > MAX_NAME:
            raise CandidateError(f"more than {MAX_FILES:,} modules and tensors are inside, or a module contains itself")
        persistent = {name: value for name, value in buffers.items() if name not in transient}
        for name, value in {**parameters, **persistent}.items():
            if value is not None:
                tensors[prefix + name] = _dense(prefix + name, value)
        waiting += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, Inert)]
    return tensors


def _entries(module: Inert, attribute: str, kind: type[Any]) -> Any:
    """The module's attribute if it has the type that torch gives it, else an empty one."""
    value = module.state.get(attribute)
    return value if isinstance(value, kind) else kind()
