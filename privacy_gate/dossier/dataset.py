"""The audit data: examples that the candidate was trained on, and examples that it was not trained on."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from privacy_gate.documents import Record, Sha256
from privacy_gate.dossier.tables import FORMATS, open_table
from privacy_gate.dossier.tables.checked import Rows, as_text
from privacy_gate.dossier.tables.files import open_file
from privacy_gate.errors import ConfigurationError, DatasetError

Format = Literal["parquet", "csv", "npz"]


class Split(IntEnum):
    """The role of a row: MEMBER was trained on, HOLDOUT is held out and audited, POPULATION only calibrates attacks."""

    MEMBER = 0
    HOLDOUT = 1
    POPULATION = 2


_TEXT = ("id", "group", "client")
_WORDS = {split.name.lower(): int(split) for split in Split}


class Table(Record):
    """The location of the audit table, and the sha256 of its bytes.

    files_sha256  if rows name image files: sha256 over their sorted (path, size, sha256)
    """

    uri: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    format: Format
    files_sha256: Sha256 | None = None


class Columns(Record):
    """The table's columns by their role. Set exactly one of image and embedding.

    canary  booleans: true for rows that a fair coin assigned to members or holdout
    trace   lists of numbers: each row's loss after every epoch of the candidate's training, nats
    """

    id: str = "id"
    label: str = "label"
    split: str = "split"
    image: str | None = None
    embedding: str | None = None
    group: str | None = None
    client: str | None = None
    canary: str | None = None
    trace: str | None = None

    @model_validator(mode="after")
    def _image_or_embedding(self) -> Self:
        if (self.image is None) == (self.embedding is None):
            raise ValueError("name either an image or an embedding column, not both or neither")
        return self

    @property
    def plain(self) -> dict[str, str]:
        """Column name by role, for every column except the image."""
        return {part: name for part, name in self.model_dump().items() if name is not None and part != "image"}


class DataManifest(Record):
    """The data that the candidate was made from. The manifest refers to the table and does not contain it.

    class_names  the classes in the model's order, if labels are names
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
    embedding  (N, D) float32 if the table holds features, else None
    image      reads the encoded bytes of row i; None if the table holds features
    canary     (N,)   bool, rows assigned to members or holdout by a fair coin; or None
    trace      (N, E) loss after each of E epochs of the candidate's training, nats; or None
    digest     sha256 that identifies the whole content
    """

    ids: NDArray[np.str_]
    label: NDArray[np.int64]
    split: NDArray[np.int8]
    digest: str
    group: NDArray[np.str_] | None = None
    client: NDArray[np.str_] | None = None
    embedding: NDArray[np.float32] | None = None
    image: Callable[[int], bytes] | None = None
    canary: NDArray[np.bool_] | None = None
    trace: NDArray[np.float64] | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)


def describe_table(uri: str, columns: Columns, class_names: tuple[str, ...] | None = None) -> DataManifest:
    """The manifest of a table: the format comes from the file name, the digests from the bytes.

    Raises ConfigurationError for a file name with another ending, and errors as read_data does.
    """
    form = Path(uri).suffix.lstrip(".").lower()
    if form not in FORMATS:
        raise ConfigurationError(f"{uri}: the file name ends in .{form}, expected .parquet, .csv or .npz")
    file, sha256 = open_file(uri)
    raw = open_table(uri, form, file, columns.plain.values(), columns.image)
    table = Table(uri=uri, sha256=sha256, format=form, files_sha256=raw.files)  # type: ignore[arg-type]
    return DataManifest(table=table, columns=columns, class_names=class_names)


def read_data(manifest: DataManifest, classes: int) -> AuditData:
    """Reads and checks the table that the manifest describes. Images are read later, one row at a time.

    Raises DatasetError (exit 5) if the table differs from the manifest or is not a valid audit table, and
    UnavailableError (exit 6) if it cannot be reached.
    """
    table, columns = manifest.table, manifest.columns
    file, sha256 = open_file(table.uri)
    # Before parsing: bytes that differ from the pinned ones never reach a parser.
    if sha256 != table.sha256:
        raise DatasetError(
            f"{table.uri}: sha256 is {sha256}, the manifest says {table.sha256}: the table changed "
            "since the dossier was written; restore it, or log a new dossier"
        )
    raw = open_table(table.uri, table.format, file, columns.plain.values(), columns.image)
    _refuse_changed_files(table, raw.files)
    parts = {part: raw.columns[name] for part, name in columns.plain.items()}
    # Ids, groups and clients are text, so that 7 and "7" are equal however the format stores them.
    text = {part: as_text(table.uri, name, parts[part]) for part, name in columns.plain.items() if part in _TEXT}
    rows = Rows(table.uri, text["id"])
    split = rows.words(parts["split"], _WORDS)
    for needed in (Split.MEMBER, Split.HOLDOUT):
        if not (split == needed).any():
            raise DatasetError(f"{table.uri}: no {needed.name.lower()} rows; the audit compares members with holdout")
    return AuditData(
        ids=rows.ids,
        label=rows.labels(parts["label"], classes, manifest.class_names),
        split=split,
        digest=_digest(manifest),
        group=text.get("group"),
        client=text.get("client"),
        embedding=rows.embedding(parts["embedding"]) if columns.embedding else None,
        image=raw.image,
        canary=rows.canaries(parts["canary"], split == Split.POPULATION) if columns.canary else None,
        trace=rows.trace(parts["trace"]) if columns.trace else None,
    )


def duplicates(data: AuditData) -> list[tuple[str, str]]:
    """Pairs of ids (member, holdout) with byte-identical images or embeddings.

    Such a holdout row was trained on under another id, so it makes membership scores meaningless.
    """
    members: dict[bytes, str] = {}
    holdout: list[tuple[bytes, str]] = []
    for row in np.flatnonzero(data.split != Split.POPULATION):  # in the table's order: fastest to read
        key, name = content_hash(data, int(row)), str(data.ids[row])
        if data.split[row] == Split.MEMBER:
            members.setdefault(key, name)  # the first of several equal members
        else:
            holdout.append((key, name))
    return [(members[key], name) for key, name in holdout if key in members]


def content_hash(data: AuditData, row: int) -> bytes:
    """sha256 of the row's encoded image, or of its embedding's bytes."""
    if data.embedding is not None:
        return hashlib.sha256(np.ascontiguousarray(data.embedding[row]).tobytes()).digest()
    if data.image is None:
        raise DatasetError("the table has neither images nor embeddings")
    return hashlib.sha256(data.image(row)).digest()


def hashed_ids(data: AuditData) -> list[str]:
    """The names of rows in reports: 16 hex digits of a hash of the id, keyed by the table's ids, labels and splits.

    Reports do not contain the key (unlike the data's digest), so only a holder of the table can map a name to its row.
    """
    # An attacker who knows some ids must not be able to recompute the key: it needs every id, label and split.
    table = "\0".join(data.ids).encode() + data.label.tobytes() + data.split.tobytes()
    key = hashlib.sha256(table).digest()
    return [hmac.digest(key, name.encode(), "sha256").hex()[:16] for name in data.ids]


def _refuse_changed_files(table: Table, files_sha256: str | None) -> None:
    """Raises DatasetError unless the manifest pins the image files that rows name, and they are unchanged."""
    if files_sha256 is None:
        return
    if table.files_sha256 is None:
        raise DatasetError(
            f"{table.uri}: rows name image files, so the manifest needs files_sha256; describe_table computes it"
        )
    if files_sha256 != table.files_sha256:
        raise DatasetError(
            f"{table.uri}: the image files' digest is {files_sha256}, the manifest says {table.files_sha256}: some "
            "changed since the dossier was written; restore them, or log a new dossier"
        )


def _digest(manifest: DataManifest) -> str:
    """sha256 of the manifest without the table's URI, so that stored results stay valid if the table is moved."""
    content: Mapping[str, Any] = manifest.model_dump(mode="json")
    described = {**content, "table": {k: v for k, v in content["table"].items() if k != "uri"}}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
