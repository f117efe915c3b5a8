"""Reads the pickle inside a torch file as plain data: nothing it names is imported, and nothing of it is called.

Deny-lists of dangerous names fail on the next name, and pickle.Unpickler is unsafe even where every name is
replaced by a stand-in: a dozen bytes make it fill the memory (a memo index of 2**31), a hundred never end
(a dict key of tuples of the same tuples), a long one crashes it (a key nested a million deep). So pickletools
parses the opcodes, and the machine below plays them with tuples, lists, dicts of text keys, and `Inert` in
place of every class and object. It has nothing to call, and no way to set an attribute.
"""

import io
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from privacy_gate.errors import CandidateError

MAX_PICKLE = 64 << 20
"""Bytes of the pickle itself; tensors lie beside it. That of a model with 10,000 tensors has about one."""

MAX_OPCODES = 2_000_000
"""Of one pickle, and entries that it copies. A module of 100 tensors takes 10,000."""

MAX_AXES = 64
MAX_NUMBER = 1 << 62
MAX_NAME = 1_000

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file of torch before 1.6."""

_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
DTYPES = frozenset(_STORAGES.values())
"""Types of elements that are read."""

_DTYPES = {f"torch.{place}{name}Storage": dtype for place in ("", "cuda.") for name, dtype in _STORAGES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: in which record of the archive, as what, and how it is laid out (elements).

    Raises ValueError for a layout that no tensor has.
    """

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.size, *self.stride)
        if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in numbers):
            raise ValueError("a tensor of impossible layout")
        if len(self.size) != len(self.stride) or len(self.size) > MAX_AXES:
            raise ValueError(f"a tensor with {len(self.size)} sizes and {len(self.stride)} strides")


class Inert:
    """Stands for a class or function, or for what calling it would give: a name, and the state set on it."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[str, Any] = {}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


def read_pickle(payload: bytes | bytearray) -> Any:
    """The object in `payload`: literals, tuples, lists, dicts, StoredTensor and Inert; sets are lists.

    Keys of dicts that are no text are dropped. Raises CandidateError for a broken pickle.
    """
    return _play(io.BytesIO(payload))[0]


def read_legacy(file: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The object in a file of torch before 1.6, and of each storage by key: its position and size in bytes.

    Such a file is five pickles (magic number, version, machine, object, storage keys), then for each key
    the number of elements (int64) and their bytes. Raises CandidateError for anything else.
    """
    head = io.BytesIO(file.read(MAX_PICKLE))
    if _play(head)[0] != LEGACY_MAGIC:
        raise CandidateError("not a file of torch.save")
    _play(head)
    machine, _ = _play(head)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CandidateError("its byte order is not little-endian: save it again on such a machine")
    found, types = _play(head)
    keys, _ = _play(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in types for key in keys):
        raise CandidateError("its list of storages is broken, or names a type that is not read")
    end, here = file.seek(0, io.SEEK_END), head.tell()
    places = {}
    for key in keys:
        file.seek(here)
        size = int.from_bytes(file.read(8), "little") * types[key].itemsize
        places[key] = (here + 8, size)
        here += 8 + size
        if here > end:
            raise CandidateError("it ends before its tensors do")
    return found, places


def _play(stream: io.BytesIO) -> tuple[Any, dict[str, torch.dtype]]:
    """The next object in the stream, and the types of the storages it names."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise CandidateError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        return machine.take(1)[0], machine.storages
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CandidateError(f"its pickle is broken: {reason}") from error


_LITERALS = re.compile(
    r"INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|((SHORT_)?BIN)?STRING|UNICODE|"
    r"(SHORT_)?BINUNICODE8?|(SHORT_)?BINBYTES8?|BYTEARRAY8"
)
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_GATHERED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": list,
    "DICT": lambda items: _set_items({}, items),
    "OBJ": lambda items: _made(items[0], tuple(items[1:])),
}


class _Machine:
    """The pickle machine: a stack, the stacks below its marks, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, torch.dtype] = {}
        self.copied = 0

    def take(self, count: int) -> list[Any]:
        """The last `count` values, off the stack."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def gather(self) -> list[Any]:
        """All values above the last mark, off the stack."""
        gathered, self.stack = self.stack, self.below.pop()
        return gathered

    def step(self, name: str, argument: Any) -> None:
        """Plays one opcode."""
        if _LITERALS.fullmatch(name):
            self.stack.append(argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _GATHERED:
            items = self.gather()
            self.stack.append(_GATHERED[name](items))
        else:
            self._move(name, argument)

    def _move(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self.gather()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.take(int(name[-1]))))
            case _:
                self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        match name:
            case "APPEND":
                (item,) = self.take(1)
                _extend(self.stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self.gather()
                _extend(self.stack[-1], items)
            case "SETITEM":
                pair = self.take(2)
                _set_items(self.stack[-1], pair)
            case "SETITEMS":
                items = self.gather()
                _set_items(self.stack[-1], items)
            case "GLOBAL":
                self.stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_named(*self.take(2)))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(_made(*self.take(2)))
            case "NEWOBJ_EX":
                self.stack.append(_made(*self.take(3)[:2]))
            case "INST":
                arguments = tuple(self.gather())
                self.stack.append(_made(_named(*argument.split(" ", 1)), arguments))
            case "BUILD":
                (state,) = self.take(1)
                self._build(self.stack[-1], state)
            case "BINPERSID":
                self.stack.append(self._persistent(self.take(1)[0]))
            case _:
                raise ValueError(f"opcode {name} has no place in a file of torch.save")

    def _build(self, target: Any, state: Any) -> None:
        """Keeps attributes of an object; whatever else its true class might do with `state` is not done."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(target, Inert) and isinstance(part, dict):
                self.copied += len(part)
                if self.copied > MAX_OPCODES:
                    raise ValueError("the same state is set on too many objects")
                target.state.update(part)

    def _persistent(self, pid: Any) -> Any:
        """torch's ("storage", type, key, location, elements, view); before 1.6 also ("module", class, source...)."""
        if not isinstance(pid, tuple) or not 3 <= len(pid) <= 6:
            raise ValueError("a persistent id that is no storage")
        kind, named, key, *rest = pid
        if kind == "module":
            return named
        if kind != "storage" or not isinstance(named, Inert) or not isinstance(key, str):
            raise ValueError("a persistent id that is no storage")
        if rest[2:] not in ([], [None]):
            raise ValueError("a view of a storage, as torch before 0.4 wrote it")
        if named.name not in _DTYPES:
            return named
        dtype = _DTYPES[named.name]
        if self.storages.setdefault(key, dtype) != dtype:
            raise ValueError(f"storage {key[:20]!r} has two types")
        return _Storage(key, dtype)


def _extend(target: Any, items: list[Any]) -> None:
    """Items for a list of unknown class are dropped."""
    if isinstance(target, list):
        target.extend(items)


def _set_items(target: Any, items: list[Any]) -> Any:
    """Keys and values in turn; those for a mapping of unknown class are dropped, and so are keys that are no text."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value
    return target


def _named(module: Any, name: Any) -> Inert:
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
        raise ValueError("a name that is none")
    return Inert(f"{module}.{name}")


def _made(called: Any, arguments: Any) -> Any:
    """What stands for the result of a call that is not made."""
    if not isinstance(called, Inert) or not isinstance(arguments, tuple):
        raise TypeError("a call of what is no class or function")
    match called.name:
        case "collections.OrderedDict" if not arguments:
            return {}
        case "builtins.set" | "__builtin__.set":
            return arguments[0] if arguments else []
        case "torch._utils._rebuild_tensor_v2":
            return _tensor(*arguments)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return arguments[0]
        case name:
            return Inert(name)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor | Inert:
    """The tensor that torch._utils._rebuild_tensor_v2 would give; Inert where its storage is of unknown type."""
    if isinstance(storage, Inert):
        return storage
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    if rest[2:] not in ((), (None,), ({},)):  # conjugate or negated views: torch would read other values
        raise ValueError("a tensor with metadata, which is not read")
    return StoredTensor(storage.key, storage.dtype, offset, tuple(size), tuple(stride))
