"""A privacy gate for model registries.

`log_dossier` attaches to a trained model what the gate must know of it; everything else is the
command `privacy-gate`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privacy_gate.registry import log_dossier

__all__ = ["log_dossier"]


def __getattr__(name: str) -> object:
    if name == "log_dossier":
        # MLflow takes seconds to import, and most of the package does without it.
        from privacy_gate.registry import log_dossier  # noqa: PLC0415

        return log_dossier
    raise AttributeError(f"module 'privacy_gate' has no attribute '{name}'")
