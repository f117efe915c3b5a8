"""Reads YAML files that people write into frozen records, with every error at file:line:col.

PyYAML keeps the last of repeated keys, reads `1e-3` as text and `on` as True, expands aliases without limit and builds
tagged objects. Policies and dossiers decide which models are blocked, and dossiers come from strangers. So this reader
accepts only the subset of YAML that JSON can express.
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
"""Levels of nesting."""

_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)\Z|[-+]?(inf|infinity|nan)\Z", re.IGNORECASE)

Path = tuple[str | int, ...]
"""Keys and indices from the document's root to a value. A last element "" means the value of a key, not the key."""

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
    """The position where a node begins, counted from 0. Both PyYAML's and libyaml's marks have this form."""

    line: int
    column: int


def load(text: str, kind: type[R], source: str) -> R:
    """Reads one YAML document as a record of `kind`.

    Raises ConfigurationError with one line per fault, each of which begins with `source:line:col:`.
    """
    marks: dict[Path, _Mark] = {}
    data = _plain(_compose(text, source), (), marks, source)
    try:
        # As JSON: strict records then accept lists for tuples and text for enums, and still no other coercion.
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        errors = error.errors()
        faults = [_fault(fault, kind, marks, source) for fault in errors if not _follows(fault, errors)]
        raise ConfigurationError("\n".join(dict.fromkeys(faults))) from error


def locate(text: str, path: Path, source: str) -> str:
    """The position of a key's value in a document, as `source:line:col`. If there is no such key, that of its parent.

    >>> locate("a:\\n  b: [1, 2]", ("a", "b", 1), "file")
    'file:2:10'
    """
    marks: dict[Path, _Mark] = {}
    _plain(_compose(text, source), (), marks, source)
    return _place(source, _value_of(path, marks))


def dump(record: Record) -> str:
    """The record as YAML that `load` reads back as an equal record."""
    data = record.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def parse(data: Mapping[str, Any], kind: type[R], source: str) -> R:
    """Plain data as a record of `kind`, with the same rules and errors as a file with this content."""
    return load(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True), kind, source)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the most similar known word, or the list of all.

    >>> nearest("epoch", ["epochs", "seed"])
    "did you mean 'epochs'?"
    """
    choices = sorted(known)
    similar = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean '{similar[0]}'?" if similar else f"known here: {', '.join(choices)}"


def _refuse(source: str, mark: _Mark | None, message: str) -> ConfigurationError:
    return ConfigurationError(f"{_place(source, mark)}: {one_line(message)}")


def _place(source: str, mark: _Mark | None) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else f"{source}:1:1"


def _compose(text: str, source: str) -> yaml.Node:
    """The document as PyYAML's nodes. Raises ConfigurationError for anything outside the accepted subset."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _refuse(source, None, f"file is larger than {MAX_BYTES:,} bytes: shorten it")
    depth = documents = 0
    try:
        # Events are checked first, without recursion, because the composer recurses: deep nesting would exhaust the
        # stack, and nested aliases the memory.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _refuse(source, event.start_mark, "anchors and aliases are not accepted: write the value out")
            # A tag such as !!python/object could name a Python object to build.
            if tag := getattr(event, "tag", None):
                raise _refuse(source, event.start_mark, f"tag {tag} is not accepted: write a plain value")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > MAX_DEPTH:
                raise _refuse(source, event.start_mark, f"nested deeper than {MAX_DEPTH} levels: flatten it")
            if documents > 1:
                raise _refuse(source, event.start_mark, "more than one document: keep one per file")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "cannot be read"
        raise _refuse(source, error.problem_mark, f"not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise _refuse(source, None, f"not valid YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise _refuse(source, None, "the file is empty: write a document into it")
    return node


def _plain(node: yaml.Node, path: Path, marks: dict[Path, _Mark], source: str) -> Any:
    """The node as dict, list, str, int, float, bool or None. Records the position of each value and key in `marks`."""
    marks.setdefault(path, node.start_mark)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refuse(source, key_node.start_mark, "a key must be plain text")
            key = key_node.value
            if key in mapping:
                first = marks[(*path, key)].line + 1
                raise _refuse(source, key_node.start_mark, f"key '{key}' is repeated (first on line {first})")
            # The key's mark comes first: `setdefault` for the value must not replace it.
            marks[(*path, key)] = key_node.start_mark
            mapping[key] = _plain(value_node, (*path, key), marks, source)
            marks[(*path, key, "")] = value_node.start_mark
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), marks, source) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, source)
    raise _refuse(source, node.start_mark, "cannot be read")


def _scalar(node: yaml.ScalarNode, source: str) -> str | int | float | bool | None:
    """The scalar by JSON's rules, plus a sign or a bare point in numbers, and `~` or nothing for null."""
    text: str = node.value
    if node.style is not None:  # quoted or a block
        return text
    if text in ("", "~", "null"):
        return None
    # Not yes, no, on or off: YAML 1.1 would make these booleans.
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.match(text):
        if len(text) > 30:  # int() takes time quadratic in the length
            raise _refuse(source, node.start_mark, "number has more than 30 characters: shorten it")
        return int(text)
    if _NOT_FINITE.match(text):
        raise _refuse(source, node.start_mark, f"'{text}' is not a finite number")
    if _FLOAT.match(text):
        value = float(text)
        if not math.isfinite(value):
            raise _refuse(source, node.start_mark, f"'{text}' is not a finite number")
        return value
    return text


def _follows(fault: Mapping[str, Any], errors: Iterable[Mapping[str, Any]]) -> bool:
    """Whether this "too short" only follows from other faults: pydantic does not count a list's invalid entries."""
    if fault["type"] != "too_short" or len(fault["input"]) < fault["ctx"]["min_length"]:
        return False
    loc = fault["loc"]
    return any(other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in errors)


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
    """The position of a key's value; if there is no such key, that of the nearest parent."""
    if (*path, "") in marks:
        return marks[*path, ""]
    while path and path not in marks:
        path = path[:-1]
    return marks.get(path)


def _blamed(message: str, path: Path, marks: Mapping[Path, _Mark]) -> Path:
    """The path of the key at fault, for the message of a validator on a whole record.

    Such messages begin with the key, and may continue with keys below it: `federation: aggregator: ...`.
    """
    for word in re.split(":? ", message):
        if (*path, word) not in marks:
            break
        path = (*path, word)
    return path


def _quoted(fault: Mapping[str, Any], part: str) -> list[str]:
    """The quoted words in one part of a pydantic error's context."""
    return re.findall(r"'([^']*)'", str(fault["ctx"][part]))


def _unknown(word: object, choices: Iterable[str]) -> str:
    return f"'{word}' is unknown; {nearest(str(word), choices)}"


def _locate(loc: tuple[str | int, ...], kind: type[Record], marks: Mapping[Path, _Mark]) -> tuple[Path, list[str]]:
    """The path in the file for a pydantic location, and the keys that its mapping accepts.

    Pydantic's locations also name the chosen member of a union. These parts are not in the file and are skipped.
    """
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})
    here: Path = ()
    known = list(schema.get("properties", {}))
    current: dict[str, Any] = schema
    for part in loc:
        if (*here, part) not in marks:  # the member of a union, chosen by its discriminator
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
    """The schema behind a reference or an optional record; other schemas as they are."""
    if "$ref" in schema:
        return dict(definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {}))
    options = [option for option in schema.get("anyOf", []) if "$ref" in option]
    if len(options) == 1:  # an optional record
        return _resolve(options[0], definitions)
    return dict(schema)
