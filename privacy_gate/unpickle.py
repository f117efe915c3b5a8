"""Reads the pickle inside a torch file as inert data: nothing it names is imported, and nothing of it is called.

Deny-lists of dangerous names fail on the next name. Here a handful of names mean something (an ordered
dict, a set, torch's two rebuild functions, its storages); every other becomes an inert object that
remembers the attributes set on it and does nothing. All stand-ins are made afresh for each file, so
that no opcode can change one for the next.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch

from privacy_gate.errors import CandidateError

MAX_PICKLE = 64 << 20
"""Bytes of the pickle itself; tensors lie beside it. That of a model with 10,000 tensors has about one."""

MAX_STORAGE = 16 << 30
"""Bytes of one storage."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file of torch before 1.6."""

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: in which record of the archive, as what, and how it is laid out (elements)."""

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a tensor has no state to set")


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


class Inert:
    """Stands for an object of any class: keeps what is set on it in `state`, and does nothing."""

    state: dict[str, Any]

    def __new__(cls, *_: object, **__: object) -> "Inert":
        made = super().__new__(cls)
        made.__dict__["state"] = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Whatever its class would have been given."""

    def __setstate__(self, state: object) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.state.update({name: value for name, value in part.items() if isinstance(name, str)})

    def __setitem__(self, key: object, value: object) -> None:
        """Items of a mapping of unknown class are dropped."""

    def append(self, item: object) -> None:
        """Items of a list of unknown class are dropped."""

    def extend(self, items: object) -> None:
        """Items of a list of unknown class are dropped."""

    def add(self, item: object) -> None:
        """Items of a set of unknown class are dropped."""


def read_pickle(payload: bytes) -> Any:
    """The object in `payload`: plain containers, StoredTensor and Inert. Raises CandidateError for a broken pickle."""
    if len(payload) > MAX_PICKLE:
        raise CandidateError(f"its pickle has {len(payload):,} bytes, expected at most {MAX_PICKLE:,}")
    return _load(_Reader(io.BytesIO(payload)))


def read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """The object in a file of torch before 1.6, and its storages by key.

    Such a file is five pickles (magic number, version, machine, object, storage keys), then for each key
    the number of elements (int64) and their bytes. Raises CandidateError for anything else.
    """
    if _load(_Reader(file)) != LEGACY_MAGIC:
        raise CandidateError("not a file of torch.save")
    _load(_Reader(file))
    machine = _load(_Reader(file))
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CandidateError("its byte order is not little-endian: save it again on such a machine")
    reader = _Reader(file)
    found = _load(reader)
    keys = _load(_Reader(file))
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in reader.storages for key in keys):
        raise CandidateError("its list of storages is broken")
    records = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little") * reader.storages[key].itemsize
        records[key] = file.read(min(size, MAX_STORAGE))
        if len(records[key]) != size:
            raise CandidateError("it ends before its tensors do")
    return found, records


def _load(reader: "_Reader") -> Any:
    try:
        return reader.load()
    except _BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CandidateError(f"its pickle is broken: {reason}") from error


# What the unpickler raises on bytes that are no pickle, or opcodes on stand-ins that cannot take them.
_BROKEN = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    ImportError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class _Reader(pickle.Unpickler):
    """An unpickler that resolves names to stand-ins of its own."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin-1")
        self.storages: dict[str, torch.dtype] = {}
        self._known: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Never imports: one of the stand-ins below, or a fresh inert class."""
        if (module, name) not in self._known:
            self._known[module, name] = _stand_in(module, name)
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """torch's ("storage", type, key, location, elements); before 1.6 also ("module", class, source...)."""
        kind, dtype, key = pid[0], pid[1], pid[2]
        if kind == "module" and isinstance(dtype, type) and issubclass(dtype, Inert):
            return dtype
        if kind != "storage" or not isinstance(dtype, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("a persistent id that is no storage")
        self.storages[key] = dtype.dtype
        return _Storage(key, dtype.dtype)


class _StorageType:
    """Stands for torch.FloatStorage and its like."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> StoredTensor:
        whole = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or not all(isinstance(number, int) and number >= 0 for number in whole):
            raise pickle.UnpicklingError("a tensor of impossible layout")
        return StoredTensor(storage.key, storage.dtype, offset, tuple(size), tuple(stride))


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, data: Any, *_: object) -> Any:
        return data


def _stand_in(module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
        return type("OrderedDict", (dict,), {})
    if module in ("builtins", "__builtin__") and name == "set":
        return type("set", (set,), {})
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return _RebuildTensor()
    if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return _RebuildParameter()
    if module == "torch" and name in _DTYPES:
        return _StorageType(_DTYPES[name])
    return type("Inert", (Inert,), {})
