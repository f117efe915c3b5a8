"""Parameters that some of several named things have, and others have not."""

from collections.abc import Mapping
from typing import Any

from privacy_gate.documents import Record


def refuse_misplaced(name: str, given: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where a parameter is given that `name` has not."""
    for parameter, owners in known.items():
        if parameter in given and name not in owners:
            raise ValueError(f"{name} has no parameter {parameter}; that is one of {', '.join(owners)}")


def given(record: Record, known: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are set."""
    return {name: getattr(record, name) for name in known if getattr(record, name) is not None}
