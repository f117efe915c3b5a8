"""A listing of a store's contents: rows of a table, or lines of JSON."""

import datetime
import json
from collections.abc import Sequence

from privacy_gate.store.shelf import Entry, Waste, groups

HEADINGS = ("kind", "recipe", "summary", "data", "results", "size", "age", "made by")


def rows(listed: Sequence[Entry], now: datetime.datetime) -> list[tuple[str, ...]]:
    """One row per group of results that differ only in their index.

    Recipe and data are shown by the first 12 hex digits of their digests.
    """
    table: list[tuple[str, ...]] = []
    for group in groups(listed):
        newest, oldest = (_age(written, now) for written in (group.newest, group.oldest))
        age = newest if newest == oldest else f"{newest} to {oldest}"
        count, size = f"{group.count:,}", _size(group.size)
        made = f"torch {group.torch}, {group.device}" if group.torch else "unknown"
        table.append((group.kind, group.recipe, group.summary, group.dataset, count, size, age, made))
    return table


def as_json(entry: Entry) -> str:
    """A result as one line of JSON: its file, size in bytes, time of writing, job, and the numerics that made it."""
    label, modified = entry.label, entry.file.modified
    return json.dumps(
        {
            "path": entry.file.path,
            "size": entry.file.size,
            "modified": None if modified is None else modified.isoformat(timespec="seconds"),
            "kind": entry.kind,
            "recipe": entry.recipe,
            "job": None if label is None else label.job,
            "made": None if label is None else label.made,
        },
        sort_keys=True,
    )


def pruned(unneeded: Waste, *, deleted: bool) -> str:
    """One line that says what pruning deleted, or would delete."""
    files = f"{len(unneeded.results):,} results and {len(unneeded.drafts):,} abandoned drafts, {_size(unneeded.size)}"
    return f"deleted {files}" if deleted else f"would delete {files}; add --yes to delete them"


def _size(count: int) -> str:
    """A number of bytes with three significant digits and a decimal unit."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _age(written: datetime.datetime | None, now: datetime.datetime) -> str:
    if written is None:
        return "unknown"
    hours = max(0.0, (now - written).total_seconds() / 3600)
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"
