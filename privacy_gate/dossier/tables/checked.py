"""What a column of an audit table must hold. Errors name the table and the first offending rows by their ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.documents import nearest
from privacy_gate.dossier.tables.raw import SHOWN
from privacy_gate.errors import DatasetError

_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")


def as_text(uri: str, column: str, values: NDArray[Any]) -> NDArray[np.str_]:
    """Text, whole numbers or truth values as text; a fraction has more than one spelling."""
    if values.dtype.kind not in "Uiub" or values.ndim != 1:
        raise DatasetError(f"{uri}: column '{column}' is of type {values.dtype}, expected text or whole numbers")
    return values.astype(np.str_)


@dataclass(frozen=True)
class Rows:
    """The rows of a table, at least one, by their unique ids (N,)."""

    uri: str
    ids: NDArray[np.str_]

    def __post_init__(self) -> None:
        values, counts = np.unique(self.ids, return_counts=True)
        if not len(self.ids):
            raise DatasetError(f"{self.uri}: the table has no rows")
        if (counts > 1).any():
            raise DatasetError(
                f"{self.uri}: {_some(values[counts > 1])}: ids stand more than once, expected unique ones"
            )

    def words(self, split: NDArray[Any], known: Mapping[str, int]) -> NDArray[np.int8]:
        """The code of each row's split, (N,)."""
        found = as_text(self.uri, "split", split)
        wrong = ~np.isin(found, list(known))
        if wrong.any():
            unknown = str(found[wrong][0])
            where = _some(self.ids[found == unknown])
            raise DatasetError(f"{self.uri}: {where}: split '{unknown}' is unknown; {nearest(unknown, known)}")
        return np.array([known[word] for word in found.tolist()], dtype=np.int8)

    def labels(self, values: NDArray[Any], classes: int, names: Sequence[str] | None) -> NDArray[np.int64]:
        """Classes from 0, (N,): of whole numbers, or of text: class names, or plain numbers as in a CSV."""
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

    def _numbered(self, values: NDArray[np.str_], names: Sequence[str] | None) -> NDArray[np.int64]:
        found, inverse = np.unique(values, return_inverse=True)
        words = found.tolist()
        place = {name: index for index, name in enumerate(names or ())}
        strange = [word for word in words if word not in place]
        if not strange:
            return np.array([place[word] for word in words])[inverse]
        if all(_NUMBER.fullmatch(word) for word in words):
            return found.astype(np.int64)[inverse]
        unknown = next((word for word in strange if not _NUMBER.fullmatch(word)), strange[0])
        where = _some(self.ids[values == unknown])
        if names is None:
            raise DatasetError(
                f"{self.uri}: {where}: label '{unknown}' is text; list class_names in the manifest, in class order"
            )
        raise DatasetError(f"{self.uri}: {where}: label '{unknown}' is not in class_names; {nearest(unknown, names)}")

    def canaries(self, values: NDArray[Any], population: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows are canaries, (N,) bool: of truth values, or of 0 and 1, or of true and false as text."""
        found = np.char.lower(as_text(self.uri, "canary", values))
        wrong = ~np.isin(found, ("true", "false", "1", "0"))
        if wrong.any():
            raise DatasetError(f"{self.uri}: {_some(self.ids[wrong])}: canary is neither true nor false")
        chosen = np.isin(found, ("true", "1"))
        if (chosen & population).any():
            raise DatasetError(
                f"{self.uri}: {_some(self.ids[chosen & population])}: population rows are no canaries; a coin makes "
                "canaries members or holdout"
            )
        return chosen

    def trace(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Each row's loss after every epoch, (N, E) float64 nats."""
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DatasetError(
                f"{self.uri}: traces have shape {values.shape} and type {values.dtype}, expected (N, E) of floats, "
                "one loss for every epoch; use Parquet or NPZ"
            )
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            raise DatasetError(f"{self.uri}: {_some(self.ids[wrong])}: traces that are not finite numbers")
        return values.astype(np.float64)

    def embedding(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Features as (N, D) float32."""
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
