"""Files that people write: strict YAML in, frozen records out, every error at file:line:col.

PyYAML keeps the last of repeated keys, reads `1e-3` as text and `on` as True, expands aliases
without bound and builds tagged objects. Policies and dossiers decide who is blocked, and dossiers
come from strangers, so this reader accepts the plain subset that JSON can say and nothing else.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, Protocol, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privacy_gate.errors import ConfigurationError, one_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 16

_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)\Z|[-+]?(inf|infinity|nan)\Z", re.IGNORECASE)

Path = tuple[str | int, ...]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A value that crosses a file: frozen, no unknown keys, no coercion, no NaN."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class InDigest(Enum):
    """Whether a field is part of digests that name stored results: written where the field is declared, as in
    `precision: Annotated[Precision, InDigest.IF_CHANGED] = "float32"`. Without it a field always is.

    IF_CHANGED  not while it has its default: for fields added after results were first stored, which stay valid
    NEVER       for what changes no result, such as where a file lies
    """

    ALWAYS = "always"
    IF_CHANGED = "if changed"
    NEVER = "never"


R = TypeVar("R", bound=Record)


class _Mark(Protocol):
    """Where a node begins, counted from 0 (PyYAML's own and libyaml's marks)."""

    line: int
    column: int


def load(text: str, kind: type[R], source: str) -> R:
    """Reads one YAML document as a record of `kind`.

    Raises ConfigurationError; its message has one line per fault, each beginning with
    `source:line:col:`.
    """
    marks: dict[Path, _Mark] = {}
    data = _plain(_compose(text, source), (), marks, source)
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        every = error.errors()
        faults = [_fault(fault, kind, marks, source) for fault in every if not _follows(fault, every)]
        raise ConfigurationError("\n".join(dict.fromkeys(faults))) from error


def locate(text: str, path: Path, source: str) -> str:
    """Where a key's value stands in a document, as `source:line:col`; of one that is not there, what would hold it.

    >>> locate("a:\\n  b: [1, 2]", ("a", "b", 1), "file")
    'file:2:10'
    """
    marks: dict[Path, _Mark] = {}
    _plain(_compose(text, source), (), marks, source)
    return _place(source, _value_of(path, marks))


def dump(record: Record) -> str:
    """The record as YAML that `load` reads back equal."""
    data = record.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def parse(data: Mapping[str, Any], kind: type[R], source: str) -> R:
    """Plain data as a record of `kind`, by the same rules and with the same errors as a file of it."""
    return load(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True), kind, source)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the likeliest known one, or the list of all.

    >>> nearest("epoch", ["epochs", "seed"])
    "did you mean 'epochs'?"
    """
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(choices)}"


def _refuse(source: str, mark: _Mark | None, message: str) -> ConfigurationError:
    return ConfigurationError(f"{_place(source, mark)}: {one_line(message)}")


def _place(source: str, mark: _Mark | None) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else f"{source}:1:1"


def _compose(text: str, source: str) -> yaml.Node:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _refuse(source, None, f"file is larger than {MAX_BYTES:,} bytes")
    depth = documents = 0
    try:
        # Events first, without recursion: a nest of brackets or aliases never reaches the composer.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _refuse(source, event.start_mark, "anchors and aliases are not accepted: write the value out")
            if tag := getattr(event, "tag", None):
                raise _refuse(source, event.start_mark, f"tag {tag} is not accepted: write a plain value")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > MAX_DEPTH:
                raise _refuse(source, event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
            if documents > 1:
                raise _refuse(source, event.start_mark, "more than one document: keep one per file")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "cannot be read"
        raise _refuse(source, error.problem_mark, f"not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise _refuse(source, None, f"not valid YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise _refuse(source, None, "the file is empty")
    return node


def _plain(node: yaml.Node, path: Path, marks: dict[Path, _Mark], source: str) -> Any:
    """The node as dict, list, str, int, float, bool or None; remembers where each stood."""
    marks.setdefault(path, node.start_mark)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refuse(source, key_node.start_mark, "a key must be plain text")
            key = key_node.value
            if key in found:
                first = marks[(*path, key)].line + 1
                raise _refuse(source, key_node.start_mark, f"key '{key}' is repeated (first on line {first})")
            marks[(*path, key)] = key_node.start_mark
            found[key] = _plain(value_node, (*path, key), marks, source)
            marks[(*path, key, "")] = value_node.start_mark
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), marks, source) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, source)
    raise _refuse(source, node.start_mark, "cannot be read")


def _scalar(node: yaml.ScalarNode, source: str) -> str | int | float | bool | None:
    text: str = node.value
    if node.style is not None:  # quoted or block text is text
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.match(text):
        if len(text) > 30:
            raise _refuse(source, node.start_mark, "number is too long")
        return int(text)
    if _NOT_FINITE.match(text):
        raise _refuse(source, node.start_mark, f"'{text}' is not a finite number")
    if _FLOAT.match(text):
        value = float(text)
        if not math.isfinite(value):
            raise _refuse(source, node.start_mark, f"'{text}' is not a finite number")
        return value
    return text


def _follows(fault: Mapping[str, Any], every: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a list is too short only since pydantic counts no entry that has a fault of its own."""
    if fault["type"] != "too_short" or len(fault["input"]) < fault["ctx"]["min_length"]:
        return False
    loc = fault["loc"]
    return any(other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in every)


def _fault(fault: Mapping[str, Any], kind: type[Record], marks: Mapping[Path, _Mark], source: str) -> str:
    """One pydantic error as `source:line:col: key: message`."""
    path, schema = _locate(fault["loc"], kind, marks)
    key = fault["loc"][-1] if fault["loc"] else ""
    if fault["type"] == "extra_forbidden" or (fault["type"] == "literal_error" and key == "[key]"):
        choices = schema if fault["type"] == "extra_forbidden" else _quoted(fault, "expected")
        mark, message = marks.get(path), f"unknown key; {nearest(str(path[-1]), choices)}"
    elif fault["type"] in ("missing", "union_tag_not_found"):
        key = key if fault["type"] == "missing" else str(fault["ctx"]["discriminator"]).strip("'")
        mark = marks.get(path)
        message = f"entry {key + 1} is missing" if isinstance(key, int) else f"'{key}' is missing here"
    elif fault["type"] == "union_tag_invalid":
        path = (*path, str(fault["ctx"]["discriminator"]).strip("'"))
        mark, message = _value_of(path, marks), _unknown(fault["ctx"]["tag"], _quoted(fault, "expected_tags"))
    elif fault["type"] == "literal_error" and isinstance(fault["input"], str):
        mark, message = _value_of(path, marks), _unknown(fault["input"], _quoted(fault, "expected"))
    else:
        message = str(fault["msg"]).removeprefix("Value error, ")
        mark = _value_of(_blamed(message, path, marks), marks)
        if isinstance(fault.get("input"), str | int | float | bool):
            message += f" (found {json.dumps(fault['input'], ensure_ascii=False)})"
    name = ".".join(str(part) for part in path)
    return str(_refuse(source, mark, f"{name}: {message}" if name else message))


def _value_of(path: Path, marks: Mapping[Path, _Mark]) -> _Mark | None:
    """Where the value of a key stands; of one that is not there, what should hold it."""
    if (*path, "") in marks:
        return marks[*path, ""]
    while path and path not in marks:
        path = path[:-1]
    return marks.get(path)


def _blamed(message: str, path: Path, marks: Mapping[Path, _Mark]) -> Path:
    """The key at fault where a validator looked at a whole record: its message begins with it, and those below it."""
    for word in re.split(":? ", message):
        if (*path, word) not in marks:
            break
        path = (*path, word)
    return path


def _quoted(fault: Mapping[str, Any], part: str) -> list[str]:
    """The words that one of pydantic's errors lists."""
    return re.findall(r"'([^']*)'", str(fault["ctx"][part]))


def _unknown(word: object, choices: Iterable[str]) -> str:
    return f"'{word}' is unknown; {nearest(str(word), choices)}"


def _locate(loc: tuple[str | int, ...], kind: type[Record], marks: Mapping[Path, _Mark]) -> tuple[Path, list[str]]:
    """Where in the file a pydantic location is, and which keys its mapping knows.

    Pydantic's locations also name the chosen member of a union; those parts are in no file.
    """
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})
    here: Path = ()
    known = list(schema.get("properties", {}))
    current: dict[str, Any] = schema
    for part in loc:
        if (*here, part) not in marks:
            chosen = current.get("discriminator", {}).get("mapping", {}).get(part)
            current = _resolve({"$ref": chosen} if chosen else current, definitions)
            known = list(current.get("properties", known))
            continue
        here = (*here, part)
        parent = current
        if isinstance(part, int):
            current = _resolve(parent.get("items", {}), definitions)
        else:
            inner = parent.get("properties", {}).get(part, parent.get("additionalProperties", {}))
            known = list(parent.get("properties", known))
            current = _resolve(inner if isinstance(inner, dict) else {}, definitions)
    return here, known


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return dict(definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {}))
    options = [option for option in schema.get("anyOf", []) if "$ref" in option]
    if len(options) == 1:  # an optional record
        return _resolve(options[0], definitions)
    return dict(schema)
