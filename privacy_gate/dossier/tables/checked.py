"""Checks on the columns of an audit table. Errors name the table, and the ids of the first rows at fault."""

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
"""One spelling per whole number, at most 18 digits: every match fits int64."""


def as_text(uri: str, column: str, values: NDArray[Any]) -> NDArray[np.str_]:
    """Text, integers or booleans as text, (N,). Floats are refused, because one number has several spellings."""
    if values.dtype.kind not in "Uiub" or values.ndim != 1:
        raise DatasetError(f"{uri}: column '{column}' is of type {values.dtype}, expected text or whole numbers")
    return values.astype(np.str_)


@dataclass(frozen=True)
class Rows:
    """The rows of a table, identified by their unique ids (N,). N >= 1."""

    uri: str
    ids: NDArray[np.str_]

    def __post_init__(self) -> None:
        values, counts = np.unique(self.ids, return_counts=True)
        if not len(self.ids):
            raise DatasetError(f"{self.uri}: the table has no rows")
        if (counts > 1).any():
            raise DatasetError(
                f"{self.uri}: {_some(values[counts > 1])}: ids occur more than once, expected unique ids"
            )

    def words(self, split: NDArray[Any], known: Mapping[str, int]) -> NDArray[np.int8]:
        """The code of each row's split, (N,) int8. known: code by word."""
        words = as_text(self.uri, "split", split)
        wrong = ~np.isin(words, list(known))
        if wrong.any():
            unknown = str(words[wrong][0])
            where = _some(self.ids[words == unknown])
            raise DatasetError(f"{self.uri}: {where}: split '{unknown}' is unknown; {nearest(unknown, known)}")
        return np.array([known[word] for word in words.tolist()], dtype=np.int8)

    def labels(self, values: NDArray[Any], classes: int, names: Sequence[str] | None) -> NDArray[np.int64]:
        """Class indices from 0, (N,) int64. The values are integers, or text: class names, or integers as in a CSV."""
        if names is not None and len(names) != classes:
            raise DatasetError(
                f"{self.uri}: class_names has {len(names)} names, but the recipe has classes: {classes}; correct either"
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
        """Text labels as numbers, (N,): by class name, or, if every label is an integer, by its value."""
        # Distinct labels only: a table has millions of rows but few classes.
        distinct, inverse = np.unique(values, return_inverse=True)
        words = distinct.tolist()
        index_of = {name: index for index, name in enumerate(names or ())}
        unnamed = [word for word in words if word not in index_of]
        # Names first, because class names may be numbers in another order, such as "10", "2".
        if not unnamed:
            return np.array([index_of[word] for word in words])[inverse]
        if all(_NUMBER.fullmatch(word) for word in words):
            return distinct.astype(np.int64)[inverse]
        unknown = next((word for word in unnamed if not _NUMBER.fullmatch(word)), unnamed[0])
        where = _some(self.ids[values == unknown])
        if names is None:
            raise DatasetError(
                f"{self.uri}: {where}: label '{unknown}' is text; list class_names in the manifest, in class order"
            )
        raise DatasetError(f"{self.uri}: {where}: label '{unknown}' is not in class_names; {nearest(unknown, names)}")

    def canaries(self, values: NDArray[Any], population: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each row is a canary, (N,) bool. The values are booleans, 0 and 1, or true and false as text."""
        words = np.char.lower(as_text(self.uri, "canary", values))
        wrong = ~np.isin(words, ("true", "false", "1", "0"))
        if wrong.any():
            raise DatasetError(f"{self.uri}: {_some(self.ids[wrong])}: canary is neither true nor false")
        chosen = np.isin(words, ("true", "1"))
        if (chosen & population).any():
            raise DatasetError(
                f"{self.uri}: {_some(self.ids[chosen & population])}: population rows cannot be canaries, which a fair "
                "coin makes members or holdout; correct canary or split"
            )
        return chosen

    def trace(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Each row's loss after every epoch, (N, E) float64, nats."""
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DatasetError(
                f"{self.uri}: traces have shape {values.shape} and type {values.dtype}, expected (N, E) of floats, "
                "one loss for every epoch; use Parquet or NPZ"
            )
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            raise DatasetError(f"{self.uri}: {_some(self.ids[wrong])}: trace holds values that are not finite numbers")
        return values.astype(np.float64)

    def embedding(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Features as (N, D) float32."""
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DatasetError(
                f"{self.uri}: embeddings have shape {values.shape} and type {values.dtype}, expected (N, D) of floats"
            )
        with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite, and is refused below
            narrow = values.astype(np.float32)
        wrong = ~np.isfinite(narrow).all(axis=1)
        if wrong.any():
            raise DatasetError(f"{self.uri}: {_some(self.ids[wrong])}: embeddings that are not finite as float32")
        return narrow


def _some(ids: NDArray[np.str_]) -> str:
    """The first few ids in words, and the number of the rest."""
    first = ", ".join(str(name) for name in ids[:SHOWN])
    return f"rows {first}" + (f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else "")
