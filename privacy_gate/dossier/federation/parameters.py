"""Parameters that belong only to some of several named rules or optimizers."""

from collections.abc import Mapping
from typing import Any

from privacy_gate.documents import Record


def refuse_misplaced(name: str, given: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError if a given parameter does not belong to `name`. known: owners by parameter."""
    for parameter, owners in known.items():
        if parameter in given and name not in owners:
            raise ValueError(f"{name} has no parameter {parameter}: remove it; it belongs to {', '.join(owners)}")


def given(record: Record, known: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the known parameters that are set in the record, by name."""
    return {name: getattr(record, name) for name in known if getattr(record, name) is not None}
