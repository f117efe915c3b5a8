"""The audit data: which examples the candidate was trained on, and which it was not."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from privacy_gate.documents import Record, nearest
from privacy_gate.errors import ConfigurationError, DatasetError
from privacy_gate.tables import FORMATS, open_table
from privacy_gate.tables.files import open_file

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Format = Literal["parquet", "csv", "npz"]

SHOWN = 5
"""Ids named in an error; the rest are counted."""

_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")


class Split(IntEnum):
    """Which part a row plays: trained on; held out and audited; calibrates attacks only."""

    MEMBER = 0
    HOLDOUT = 1
    POPULATION = 2


class Table(Record):
    """Where the audit table is, and what it is: the sha256 of its bytes.

    files_sha256: where rows name image files, sha256 over their sorted (path, size, sha256).
    """

    uri: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    format: Format
    files_sha256: Sha256 | None = None


class Columns(Record):
    """The table's columns by the part they play. Either image or embedding."""

    id: str = "id"
    label: str = "label"
    split: str = "split"
    image: str | None = None
    embedding: str | None = None
    group: str | None = None
    client: str | None = None

    @model_validator(mode="after")
    def _image_or_embedding(self) -> Self:
        if (self.image is None) == (self.embedding is None):
            raise ValueError("name either an image or an embedding column")
        return self

    @property
    def plain(self) -> dict[str, str]:
        """Part -> column, for all but the image."""
        return {part: name for part, name in self.model_dump().items() if name is not None and part != "image"}


class DataManifest(Record):
    """What the candidate was made from; the table itself stays where it is.

    class_names: the classes in the model's order, where labels are names.
    """

    table: Table
    columns: Columns
    class_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _each_class_once(self) -> Self:
        names = self.class_names or ()
        if len(set(names)) < len(names):
            raise ValueError("class_names has a name twice")
        return self


@dataclass(frozen=True)
class AuditData:
    """The audit table, in its own row order.

    ids        (N,)   text, unique
    label      (N,)   int64, 0 <= label < C
    split      (N,)   int8, values of Split
    group      (N,)   text, or None
    client     (N,)   text, or None
    embedding  (N, D) float32 where the table holds features, else None
    image      reads the encoded bytes of row i; None where the table holds features
    digest     sha256 that stands for the whole content
    """

    ids: NDArray[np.str_]
    label: NDArray[np.int64]
    split: NDArray[np.int8]
    digest: str
    group: NDArray[np.str_] | None = None
    client: NDArray[np.str_] | None = None
    embedding: NDArray[np.float32] | None = None
    image: Callable[[int], bytes] | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)


def describe_table(uri: str, columns: Columns, class_names: tuple[str, ...] | None = None) -> DataManifest:
    """The manifest of a table: its format by its name, its digests by its bytes."""
    form = Path(uri).suffix.lstrip(".").lower()
    if form not in FORMATS:
        raise ConfigurationError(f"{uri}: the name ends in .{form}, expected .parquet, .csv or .npz")
    file, sha256 = open_file(uri)
    raw = open_table(uri, form, file, columns.plain.values(), columns.image)
    table = Table(uri=uri, sha256=sha256, format=form, files_sha256=raw.files)  # type: ignore[arg-type]
    return DataManifest(table=table, columns=columns, class_names=class_names)


def read_data(manifest: DataManifest, classes: int) -> AuditData:
    """Reads and checks the table that the manifest describes; images stay where they are until asked for.

    Raises DatasetError (exit 5) for a table that is not what the manifest says, or no audit table;
    UnavailableError (exit 6) where it cannot be reached.
    """
    table, columns = manifest.table, manifest.columns
    file, found = open_file(table.uri)
    if found != table.sha256:
        raise DatasetError(
            f"{table.uri}: sha256 is {found}, the manifest says {table.sha256}: the table changed "
            "since the dossier was written; restore it, or log a new dossier"
        )
    raw = open_table(table.uri, table.format, file, columns.plain.values(), columns.image)
    _refuse_changed_files(table, raw.files)
    parts = {part: raw.columns[name] for part, name in columns.plain.items()}
    check = _Checks(table.uri, _text(table.uri, columns.id, parts["id"]))
    return AuditData(
        ids=check.unique_ids(),
        label=check.labels(parts["label"], classes, manifest.class_names),
        split=check.splits(parts["split"]),
        digest=_digest(manifest),
        group=_text(table.uri, columns.group, parts["group"]) if columns.group else None,
        client=_text(table.uri, columns.client, parts["client"]) if columns.client else None,
        embedding=check.embedding(parts["embedding"]) if columns.embedding else None,
        image=raw.image,
    )


def duplicates(data: AuditData) -> list[tuple[str, str]]:
    """Pairs of ids (member, holdout) whose images or embeddings are equal to the byte: they spoil membership."""
    members: dict[bytes, str] = {}
    held: list[tuple[bytes, str]] = []
    for row in np.flatnonzero(data.split != Split.POPULATION):  # in the table's order, in which images are read best
        key, name = content_hash(data, int(row)), str(data.ids[row])
        if data.split[row] == Split.MEMBER:
            members.setdefault(key, name)
        else:
            held.append((key, name))
    return [(members[key], name) for key, name in held if key in members]


def content_hash(data: AuditData, row: int) -> bytes:
    """sha256 of the row's encoded image, or of its embedding's bytes."""
    if data.embedding is not None:
        return hashlib.sha256(np.ascontiguousarray(data.embedding[row]).tobytes()).digest()
    if data.image is None:
        raise DatasetError("the table has neither images nor embeddings")
    return hashlib.sha256(data.image(row)).digest()


def hashed_ids(data: AuditData) -> list[str]:
    """What reports call the rows: 16 hex digits of sha256 over the data's digest and the id."""
    return [hashlib.sha256(f"{data.digest}:{name}".encode()).hexdigest()[:16] for name in data.ids]


@dataclass(frozen=True)
class _Checks:
    """What a column must be; errors name the table and the first offending ids."""

    uri: str
    ids: NDArray[np.str_]

    def unique_ids(self) -> NDArray[np.str_]:
        values, counts = np.unique(self.ids, return_counts=True)
        if not len(self.ids):
            raise DatasetError(f"{self.uri}: the table has no rows")
        if (counts > 1).any():
            raise DatasetError(
                f"{self.uri}: {_some(values[counts > 1])}: ids stand more than once, expected unique ones"
            )
        return self.ids

    def labels(self, values: NDArray[Any], classes: int, names: tuple[str, ...] | None) -> NDArray[np.int64]:
        """Whole numbers, or text: names of classes, or (CSV has only text) whole numbers written plainly."""
        if names is not None and len(names) != classes:
            raise DatasetError(
                f"{self.uri}: class_names has {len(names)} names, the recipe {classes} classes; correct either"
            )
        if values.dtype.kind == "U" and values.ndim == 1:
            values = self._numbered(values, names)
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise DatasetError(
                f"{self.uri}: labels are of type {values.dtype}, expected integers from 0 or class names"
            )
        wrong = (values < 0) | (values >= classes)
        if wrong.any():
            raise DatasetError(
                f"{self.uri}: {_some(self.ids[wrong])}: label outside 0 to {classes - 1}; the recipe "
                f"has {classes} classes"
            )
        return values.astype(np.int64)

    def _numbered(self, values: NDArray[np.str_], names: tuple[str, ...] | None) -> NDArray[np.int64]:
        words, inverse = np.unique(values, return_inverse=True)
        place = {name: index for index, name in enumerate(names or ())}
        unknown = next((word for word in words.tolist() if word not in place), None)
        if unknown is None:
            return np.array([place[word] for word in words.tolist()])[inverse]
        if all(_NUMBER.fullmatch(word) for word in words.tolist()):
            return words.astype(np.int64)[inverse]
        where = _some(self.ids[values == unknown])
        if names is None:
            raise DatasetError(
                f"{self.uri}: {where}: label '{unknown}' is text; list class_names in the manifest, in class order"
            )
        raise DatasetError(f"{self.uri}: {where}: label '{unknown}' is not in class_names; {nearest(unknown, names)}")

    def splits(self, values: NDArray[Any]) -> NDArray[np.int8]:
        words = {split.name.lower(): split for split in Split}
        found = values.astype(np.str_)
        wrong = ~np.isin(found, list(words))
        if wrong.any():
            unknown = str(found[wrong][0])
            where = _some(self.ids[found == unknown])
            raise DatasetError(f"{self.uri}: {where}: split '{unknown}' is unknown; {nearest(unknown, words)}")
        split = np.array([words[word] for word in found.tolist()], dtype=np.int8)
        for needed in (Split.MEMBER, Split.HOLDOUT):
            if not (split == needed).any():
                raise DatasetError(
                    f"{self.uri}: no {needed.name.lower()} rows; the audit compares members with holdout"
                )
        return split

    def embedding(self, values: NDArray[Any]) -> NDArray[np.float32]:
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DatasetError(
                f"{self.uri}: embeddings have shape {values.shape} and type {values.dtype}, expected (N, D) of floats"
            )
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        wrong = ~np.isfinite(narrow).all(axis=1)
        if wrong.any():
            raise DatasetError(
                f"{self.uri}: {_some(self.ids[wrong])}: embeddings that are not finite numbers of 32 bits"
            )
        return narrow


def _some(ids: NDArray[np.str_]) -> str:
    shown = ", ".join(str(name) for name in ids[:SHOWN])
    return f"rows {shown}" + (f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else "")


def _text(uri: str, column: str, values: NDArray[Any]) -> NDArray[np.str_]:
    """Text, whole numbers or truth values as text; a fraction has more than one spelling."""
    if values.dtype.kind not in "Uiub" or values.ndim != 1:
        raise DatasetError(f"{uri}: column '{column}' is of type {values.dtype}, expected text or whole numbers")
    return values.astype(np.str_)


def _refuse_changed_files(table: Table, found: str | None) -> None:
    """Files that rows name are part of the data: the manifest must pin them too."""
    if found is None:
        return
    if table.files_sha256 is None:
        raise DatasetError(
            f"{table.uri}: rows name image files; the manifest needs files_sha256 (describe_table makes it)"
        )
    if found != table.files_sha256:
        raise DatasetError(
            f"{table.uri}: the image files' digest is {found}, the manifest says {table.files_sha256}: some changed "
            "since the dossier was written; restore them, or log a new dossier"
        )


def _digest(manifest: DataManifest) -> str:
    """Stands for the content and how it is read; not for where it lies."""
    content: Mapping[str, Any] = manifest.model_dump(mode="json")
    described = {**content, "table": {k: v for k, v in content["table"].items() if k != "uri"}}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
