"""Reads the pickle inside a torch file as plain data. It imports no name in the pickle and calls nothing.

A deny-list of dangerous names fails at the first name that it lacks. pickle.Unpickler is unsafe even if every name is
replaced by a placeholder: a dozen bytes can fill the memory (a memo index of 2**31), a hundred bytes can run forever
(a dict key made of nested tuples that repeat each other), and a long pickle can crash it (a key nested a million levels
deep). So pickletools only parses the opcodes, and the machine below executes them with tuples, lists, dicts with text
keys, and `Inert` for every class and object. The machine cannot call anything or set an attribute.
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
"""Most bytes in a pickle, which does not contain the tensors' values. A model with 10,000 tensors needs about 1 MB."""

MAX_OPCODES = 2_000_000
"""Most opcodes in one pickle, and most attributes that it sets. A module with 100 tensors needs 10,000."""

MAX_AXES = 64

MAX_NUMBER = 1 << 62
"""Sizes, strides and offsets of tensors stay below this, so that torch's 64-bit integers hold them."""

MAX_NAME = 1_000
"""Most characters in the name of a tensor, or of a class with its module."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The value of the first pickle in a file from torch before 1.6."""

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
"""Supported types of tensor elements."""

_DTYPES = {f"torch.{place}{name}Storage": dtype for place in ("", "cuda.") for name, dtype in _STORAGES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor: the key of its record, its type, and its layout.

    offset, size, stride  in elements, as in torch.Tensor.as_strided
    Raises ValueError for an impossible layout.
    """

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.size, *self.stride)
        # `type(...) is not int`: bool is a subclass of int, and a pickle may contain True as a size.
        if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in numbers):
            raise ValueError("a tensor has an impossible layout")
        if len(self.size) != len(self.stride) or len(self.size) > MAX_AXES:
            raise ValueError(f"a tensor has {len(self.size)} sizes and {len(self.stride)} strides")


class Inert:
    """Placeholder for a class or function, or for the result of calling it: its name, and the state set on it."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[str, Any] = {}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


def read_pickle(payload: bytes | bytearray) -> Any:
    """The object in `payload`, made of literals, tuples, lists, dicts, StoredTensor and Inert. Sets become lists.

    Dict entries whose key is not text are dropped. Raises CandidateError for an invalid pickle.
    """
    return _play(io.BytesIO(payload))[0]


def read_legacy(file: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The object in a file from torch before 1.6, and the position and size in bytes of each storage, by key.

    Such a file consists of five pickles (magic number, version, machine, object, storage keys) and then, for each key,
    the number of elements (int64) and their bytes. Raises CandidateError for any other file.
    """
    head = io.BytesIO(file.read(MAX_PICKLE))
    if _play(head)[0] != LEGACY_MAGIC:
        raise CandidateError("not a file from torch.save")
    _play(head)  # the protocol version
    machine, _ = _play(head)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CandidateError("its byte order is not little-endian: save it again on a little-endian machine")
    content, types = _play(head)
    keys, _ = _play(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in types for key in keys):
        raise CandidateError("its list of storages is invalid, or names an unsupported type: save it as float32")
    end, here = file.seek(0, io.SEEK_END), head.tell()
    places = {}
    for key in keys:
        file.seek(here)
        size = int.from_bytes(file.read(8), "little") * types[key].itemsize
        places[key] = (here + 8, size)
        here += 8 + size
        if here > end:
            raise CandidateError("it ends before its tensors do: save the model again")
    return content, places


def _play(stream: io.BytesIO) -> tuple[Any, dict[str, torch.dtype]]:
    """The next object in the stream, and the types of the storages that it names, by key."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:  # bounds the time that a hostile pickle can take
                raise CandidateError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        return machine.take(1)[0], machine.storages
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CandidateError(f"its pickle is invalid: {reason}; save the model again with torch.save") from error


# Opcodes that push their own argument.
_LITERALS = re.compile(
    r"INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|((SHORT_)?BIN)?STRING|UNICODE|"
    r"(SHORT_)?BINUNICODE8?|(SHORT_)?BINBYTES8?|BYTEARRAY8"
)
# Opcodes that push a constant or an empty container.
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
# Opcodes that replace all values above the last mark. OBJ only makes a placeholder: nothing is called.
_GATHERED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": list,
    "DICT": lambda items: _set_items({}, items),
    "OBJ": lambda items: _made(items[0], tuple(items[1:])),
}


class _Machine:
    """The pickle machine.

    stack   values above the last mark
    below   the stacks below each mark, the innermost last
    memo    values that the pickle refers to again, by number; a dict, so that a huge number takes no memory
    copied  number of attributes set so far, see MAX_OPCODES
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, torch.dtype] = {}
        self.copied = 0

    def take(self, count: int) -> list[Any]:
        """Removes the last `count` values from the stack and returns them."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def gather(self) -> list[Any]:
        """Removes all values above the last mark and returns them."""
        gathered, self.stack = self.stack, self.below.pop()
        return gathered

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode."""
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
        """Opcodes that only move values between stack, marks and memo."""
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":  # POP on an empty stack removes the mark, as in pickle
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
        """Opcodes that fill containers or make placeholders. Any opcode not listed is refused."""
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
            case "NEWOBJ_EX":  # class, arguments, keyword arguments; no placeholder needs the last
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
                raise ValueError(f"opcode {name} does not occur in files from torch.save")

    def _build(self, target: Any, state: Any) -> None:
        """Stores the attributes of an object in its placeholder. A `__setstate__` of the real class is never called."""
        # A state of two parts is pickle's (attributes, slots).
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(target, Inert) and isinstance(part, dict):
                # Without this limit, a short pickle could copy one large state into many objects.
                self.copied += len(part)
                if self.copied > MAX_OPCODES:
                    raise ValueError("the same state is set on too many objects")
                target.state.update(part)

    def _persistent(self, pid: Any) -> Any:
        """The storage that torch's persistent id names.

        The id is ("storage", type, key, location, elements, view), or, before torch 1.6, ("module", class, source...).
        """
        if not isinstance(pid, tuple) or not 3 <= len(pid) <= 6:
            raise ValueError("a persistent id does not name a storage")
        kind, named, key, *rest = pid
        if kind == "module":
            return named
        if kind != "storage" or not isinstance(named, Inert) or not isinstance(key, str):
            raise ValueError("a persistent id does not name a storage")
        if rest[2:] not in ([], [None]):  # the element `view`
            raise ValueError("a storage is a view, as torch before 0.4 wrote it")
        if named.name not in _DTYPES:
            return named  # stays Inert; a tensor in it is refused later, by name
        dtype = _DTYPES[named.name]
        if self.storages.setdefault(key, dtype) != dtype:
            raise ValueError(f"storage {key[:20]!r} has two types")
        return _Storage(key, dtype)


def _extend(target: Any, items: list[Any]) -> None:
    """Appends the items. Drops them if the target is a placeholder for an unknown list class."""
    if isinstance(target, list):
        target.extend(items)


def _set_items(target: Any, items: list[Any]) -> Any:
    """Sets alternating keys and values. Drops them if the target is a placeholder, and drops keys that are not text.

    Hashing a text key is always fast and safe; a hostile tuple key could take forever or crash.
    """
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value
    return target


def _named(module: Any, name: Any) -> Inert:
    """The placeholder for a class or function."""
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
        raise ValueError("a class name is not text, or is too long")
    return Inert(f"{module}.{name}")


def _made(called: Any, arguments: Any) -> Any:
    """The result that stands for a call. The call is not made; only the few names below have a result of their own."""
    if not isinstance(called, Inert) or not isinstance(arguments, tuple):
        raise TypeError("a call to something that is not a class or function")
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
    """The tensor that torch._utils._rebuild_tensor_v2 would return; Inert if its storage has an unsupported type."""
    if isinstance(storage, Inert):
        return storage
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor has no storage")
    if rest[2:] not in ((), (None,), ({},)):  # conjugate and negated views: torch would read other values
        raise ValueError("a tensor has metadata, which is not supported")
    return StoredTensor(storage.key, storage.dtype, offset, tuple(size), tuple(stride))
