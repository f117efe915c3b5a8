"""Round logs of federations that Flower trains (`pip install 'privacy-gate[flower]'`).

    strategy = logged(FedAvg(...), only=["fc.weight", "fc.bias"])
    with mlflow.start_run():
        result = strategy.start(grid, initial_arrays, num_rounds=20)
        # log the model here too, so that the gate finds the log beside it

Nothing of Flower is imported: any strategy of its message API will do (1.21 or later).
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from privacy_gate.dossier.roundlog import updates_from
from privacy_gate.errors import ConfigurationError, GateError
from privacy_gate.registry.producer import log_round

Strategy = TypeVar("Strategy")

_SAYS = "client"
_PARTITION = "partition-id"


def client_of(reply: Any) -> str:
    """Who sent a reply: what its ConfigRecord says under "client", else its metric "partition-id", else its node's id.

    The check needs the names that the audit table uses; node ids are drawn anew for every federation.
    """
    for record in reply.content.config_records.values():
        if _SAYS in record:
            return str(record[_SAYS])
    for record in reply.content.metric_records.values():
        if _PARTITION in record:
            return str(int(record[_PARTITION]))
    return str(reply.metadata.src_node_id)


def logged(
    strategy: Strategy,
    *,
    client_of: Callable[[Any], str] = client_of,
    only: Collection[str] | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> Strategy:
    """Makes a Flower strategy log every training round to its MLflow run, as log_round does; returns the strategy.

    What each client sent is logged as it came, before the strategy joins it. Whatever goes wrong with that, in any
    round, costs the round's entry, with a warning that says why, and never the training: a registry that does not
    answer, say, a client that sent NaN, or two of one name. The log then has no file for that round.

    client_of  the client of a reply, as the audit table names it
    only, run_id, tracking_uri  as in log_round
    """
    inner: Any = strategy
    configure, aggregate = inner.configure_train, inner.aggregate_train
    sent: dict[str, NDArray[Any]] = {}

    def configure_train(server_round: int, arrays: Any, *rest: Any, **named: Any) -> Any:
        sent.clear()
        with _Spared(server_round):
            sent.update(_arrays(arrays))
        return configure(server_round, arrays, *rest, **named)

    def aggregate_train(server_round: int, replies: Iterable[Any]) -> Any:
        replies = list(replies)
        answered = [reply for reply in replies if not reply.has_error()]
        if sent and answered:
            key = getattr(inner, "weighted_by_key", "num-examples")
            with _Spared(server_round):
                updates, examples = _received(answered, sent, client_of, key)
                log_round(server_round, sent, updates, examples, only=only, run_id=run_id, tracking_uri=tracking_uri)
        return aggregate(server_round, replies)

    inner.configure_train, inner.aggregate_train = configure_train, aggregate_train
    return strategy


@dataclass(frozen=True)
class _Spared:
    """Makes a warning of whatever keeps a round from being logged.

    Not a tuple of exceptions: every artifact store that MLflow may write to has its own, and none may end a training.
    """

    server_round: int

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        what = str(error) if isinstance(error, GateError) else f"{type(error).__name__}: {error}"
        said = what.removeprefix(f"round {self.server_round}: ")
        warnings.warn(f"round {self.server_round} is not logged: {said}", RuntimeWarning, stacklevel=3)
        return True


def _received(
    replies: Iterable[Any], sent: Mapping[str, NDArray[Any]], client_of: Callable[[Any], str], key: str
) -> tuple[dict[str, Mapping[str, Any]], dict[str, int] | None]:
    """Updates by client, and the examples that each names under `key`; None where not all do.

    Raises ConfigurationError for what no round can be.
    """
    updates: dict[str, Mapping[str, Any]] = {}
    examples: dict[str, int] = {}
    for reply in replies:
        client = client_of(reply)
        if client in updates:
            raise ConfigurationError(
                f"two replies of the client {client!r}; let each say its own name in a ConfigRecord, "
                '{"client": NAME}, or pass client_of='
            )
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise ConfigurationError(f"client {client!r} sent {len(records)} ArrayRecords, expected its model alone")
        local = _arrays(records[0])
        for name, tensor in local.items():
            if name not in sent or tensor.shape != sent[name].shape:
                raise ConfigurationError(
                    f"client {client!r} sent {name!r}, which the model has not, or of another shape"
                )
        updates[client] = updates_from(local, sent)
        for record in reply.content.metric_records.values():
            if key in record:
                examples[client] = int(record[key])
    return updates, examples if examples.keys() == updates.keys() else None


def _arrays(record: Any) -> dict[str, NDArray[Any]]:
    return {str(name): np.asarray(array.numpy()) for name, array in record.items()}
