"""The audit data: which examples the candidate was trained on, and which it was not."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privacy_gate.documents import Record

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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
    format: Literal["parquet", "csv", "npz"]
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


class DataManifest(Record):
    """What the candidate was made from; the table itself stays where it is."""

    table: Table
    columns: Columns
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AuditData:
    """The audit table, in its own row order.

    ids        (N,)   text, unique
    label      (N,)   int64, 0 <= label < C
    split      (N,)   int8, values of Split
    group      (N,)   text, or None
    client     (N,)   text, or None
    embedding  (N, D) float32 where the table holds features, else None
    image      reads the encoded bytes of row i, or None where the table holds features
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
