"""A store's contents in words: rows of a table, lines of JSON."""

import datetime
import json
from collections.abc import Sequence

from privacy_gate.store.shelf import Entry, Waste, groups

HEADINGS = ("kind", "recipe", "what", "data", "results", "size", "age", "made by")


def rows(listed: Sequence[Entry], now: datetime.datetime) -> list[tuple[str, ...]]:
    """One row for results that differ only in their index; recipe and data by the first 12 digits of their digests."""
    found: list[tuple[str, ...]] = []
    for group in groups(listed):
        newest, oldest = (_age(when, now) for when in (group.newest, group.oldest))
        age = newest if newest == oldest else f"{newest} to {oldest}"
        count, size = f"{group.count:,}", _size(group.size)
        made = f"torch {group.torch}, {group.device}" if group.torch else "unknown"
        found.append((group.kind, group.recipe, group.summary, group.dataset, count, size, age, made))
    return found


def as_json(entry: Entry) -> str:
    """A result as one line of JSON: its file, size in bytes, time of writing, job, and what made it."""
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


def told(found: Waste, *, deleted: bool) -> str:
    """One line on what pruning did, or would do."""
    what = f"{len(found.results):,} results and {len(found.drafts):,} abandoned drafts, {_size(found.size)}"
    return f"deleted {what}" if deleted else f"would delete {what}; --yes deletes"


def _size(count: int) -> str:
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _age(when: datetime.datetime | None, now: datetime.datetime) -> str:
    if when is None:
        return "unknown"
    hours = max(0.0, (now - when).total_seconds() / 3600)
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"
