"""The digest of a job, which names its stored result: sha256 of the job's description as canonical JSON."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from privacy_gate.documents import InDigest, Record
from privacy_gate.jobs.kinds import Job

FORMAT = 2
"""Part of every digest; raised if the meaning of every stored result changes."""


def describe(job: Job) -> dict[str, Any]:
    """The job as plain JSON data, without the fields that are not part of digests: see InDigest."""
    head: dict[str, Any] = {"format": FORMAT, "kind": type(job).__name__}
    if job.revision:
        head["revision"] = job.revision
    return head | _fields(job)


def current(described: Mapping[str, Any]) -> bool:
    """Whether this version of the gate can request the job with this description.

    A kind that this version does not know, or has not loaded, counts as current if its format is: no result is deleted
    on a guess.
    """
    revision = described.get("revision", 0)
    known = {kind.__name__: kind.revision for kind in Job.__subclasses__()}
    return described.get("format") == FORMAT and known.get(str(described.get("kind")), revision) == revision


def digest(job: Job) -> str:
    """sha256 of the job's canonical JSON: the name under which its result is stored."""
    return digest_of(describe(job))


def digest_of(described: Mapping[str, Any]) -> str:
    """The digest of a job, from its description as `describe` gives it."""
    # Canonical: sorted keys, no spaces and ASCII only, so equal jobs have equal bytes.
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _fields(holder: Job | Record) -> dict[str, Any]:
    """The fields of a job or record that are part of digests, as plain JSON data."""
    kind: object = type(holder)
    fields = {}
    for name, (part, default) in _parts(kind).items():
        value = getattr(holder, name)
        if part is InDigest.NEVER or (part is InDigest.IF_CHANGED and value == default):
            continue
        fields[name] = _plain(value)
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return _fields(value)
    return tuple(_plain(one) for one in value) if isinstance(value, tuple) else value


@cache
def _parts(kind: Any) -> dict[str, tuple[InDigest, Any]]:
    """How each field of a job or record takes part in digests, and its default."""
    if issubclass(kind, Record):
        return {name: (_part(field.metadata), field.default) for name, field in kind.model_fields.items()}
    return {
        # Dataclasses keep Annotated metadata on the type; pydantic moves it to the field.
        field.name: (_part(getattr(field.type, "__metadata__", ())), field.default)
        for field in dataclasses.fields(kind)
    }


def _part(metadata: Any) -> InDigest:
    return next((one for one in metadata if isinstance(one, InDigest)), InDigest.ALWAYS)
