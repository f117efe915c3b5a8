"""A privacy gate for model registries.

`log_dossier` attaches to a trained model what the gate must know of it, `log_round` what a federation's server
saw in a round; everything else is the command `privacy-gate`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privacy_gate.producer import log_dossier, log_round
    from privacy_gate.roundlog import updates_from

__all__ = ["log_dossier", "log_round", "updates_from"]


def __getattr__(name: str) -> object:
    # MLflow takes seconds to import, and most of the package does without it.
    if name in ("log_dossier", "log_round"):
        from privacy_gate import producer  # noqa: PLC0415

        return getattr(producer, name)
    if name == "updates_from":
        from privacy_gate.roundlog import updates_from  # noqa: PLC0415

        return updates_from
    raise AttributeError(f"module 'privacy_gate' has no attribute '{name}'")
