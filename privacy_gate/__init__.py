"""A privacy gate for model registries: the whole public interface, imported lazily.

To train: `log_dossier` attaches to a trained model what the gate must know about it, `describe_table` writes the data
manifest that it takes, `log_round` logs what a federation's server saw in a round.
To gate from a notebook or a pipeline: `check` runs the whole pass, `prepare` and `audit` one step each, `promote` acts
on a report, `load_report` reads one. They raise `privacy_gate.errors.GateError` where the command line would exit.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privacy_gate.dossier.dataset import Columns, describe_table
    from privacy_gate.dossier.roundlog import updates_from
    from privacy_gate.gate.interface import audit, check, load_report, prepare, promote
    from privacy_gate.registry.producer import log_dossier, log_round

    __version__: str

_HOMES = {
    "Columns": "privacy_gate.dossier.dataset",
    "audit": "privacy_gate.gate.interface",
    "check": "privacy_gate.gate.interface",
    "describe_table": "privacy_gate.dossier.dataset",
    "load_report": "privacy_gate.gate.interface",
    "log_dossier": "privacy_gate.registry.producer",
    "log_round": "privacy_gate.registry.producer",
    "prepare": "privacy_gate.gate.interface",
    "promote": "privacy_gate.gate.interface",
    "updates_from": "privacy_gate.dossier.roundlog",
}
"""Where each public name lives. MLflow and torch take seconds to import, so nothing is imported before it is used."""

__all__ = [
    "Columns",
    "__version__",
    "audit",
    "check",
    "describe_table",
    "load_report",
    "log_dossier",
    "log_round",
    "prepare",
    "promote",
    "updates_from",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("privacy-gate")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'privacy_gate' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
