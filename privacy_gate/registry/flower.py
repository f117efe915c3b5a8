"""Round logs of federations that Flower trains (`pip install 'privacy-gate[flower]'`).

    strategy = logged(FedAvg(...), only=["fc.weight", "fc.bias"])
    with mlflow.start_run():
        result = strategy.start(grid, initial_arrays, num_rounds=20)
        # log the model in the same run, so that the gate finds its round log

This module does not import Flower. It works with any strategy of Flower's message API (1.21 or later).
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

_CLIENT_KEY = "client"
"""Key of a ConfigRecord under which a reply states its client's name."""

_PARTITION_KEY = "partition-id"
"""Key of a MetricRecord with the number of the client's partition."""


def client_of(reply: Any) -> str:
    """The client that sent a reply: "client" in its ConfigRecord, else its metric "partition-id", else its node id.

    The trajectory check needs the client names of the audit table. Node ids are random in every federation, so they
    serve only if the table is written from them.
    """
    for record in reply.content.config_records.values():
        if _CLIENT_KEY in record:
            return str(record[_CLIENT_KEY])
    for record in reply.content.metric_records.values():
        if _PARTITION_KEY in record:
            return str(int(record[_PARTITION_KEY]))
    return str(reply.metadata.src_node_id)


def logged(
    strategy: Strategy,
    *,
    client_of: Callable[[Any], str] = client_of,
    only: Collection[str] | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> Strategy:
    """Makes a Flower strategy log every training round to its MLflow run, as log_round does. Returns the strategy.

    Updates are logged as received, before the strategy aggregates them. A fault never stops the training. If a round
    cannot be logged, because the registry does not answer, a client sent NaN or two clients have one name, a warning
    says why and the log has no file for this round.

    client_of  returns the client of a reply, named as in the audit table
    only, run_id, tracking_uri  as in log_round
    """
    inner: Any = strategy
    configure, aggregate = inner.configure_train, inner.aggregate_train
    global_model: dict[str, NDArray[Any]] = {}  # as sent to the clients in this round; empty if it cannot be read

    def configure_train(server_round: int, arrays: Any, *rest: Any, **named: Any) -> Any:
        global_model.clear()  # a round must never be logged with the model of an earlier round
        with _FaultsAsWarnings(server_round):
            global_model.update(_arrays(arrays))
        return configure(server_round, arrays, *rest, **named)

    def aggregate_train(server_round: int, replies: Iterable[Any]) -> Any:
        replies = list(replies)
        answered = [reply for reply in replies if not reply.has_error()]
        if global_model and answered:
            key = getattr(inner, "weighted_by_key", "num-examples")
            with _FaultsAsWarnings(server_round):
                updates, examples = _received(answered, global_model, client_of, key)
                log_round(
                    server_round, global_model, updates, examples, only=only, run_id=run_id, tracking_uri=tracking_uri
                )
        return aggregate(server_round, replies)

    inner.configure_train, inner.aggregate_train = configure_train, aggregate_train
    return strategy


@dataclass(frozen=True)
class _FaultsAsWarnings:
    """Turns any exception while a round is logged into a warning.

    It does not list exceptions: every artifact store behind MLflow raises its own, and none may stop a training.
    KeyboardInterrupt and SystemExit still pass.
    """

    server_round: int

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        message = str(error) if isinstance(error, GateError) else f"{type(error).__name__}: {error}"
        reason = message.removeprefix(f"round {self.server_round}: ")
        warnings.warn(f"round {self.server_round} is not logged: {reason}", RuntimeWarning, stacklevel=3)
        return True  # the exception is suppressed


def _received(
    replies: Iterable[Any], global_model: Mapping[str, NDArray[Any]], client_of: Callable[[Any], str], key: str
) -> tuple[dict[str, Mapping[str, Any]], dict[str, int] | None]:
    """Updates by client, and each client's number of examples under `key`; None unless all clients state it.

    Raises ConfigurationError for replies that do not form a valid round.
    """
    updates: dict[str, Mapping[str, Any]] = {}
    examples: dict[str, int] = {}
    for reply in replies:
        client = client_of(reply)
        if client in updates:
            raise ConfigurationError(
                f"two replies of the client {client!r}; let each client send its own name in a ConfigRecord, "
                '{"client": NAME}, or pass client_of='
            )
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise ConfigurationError(f"client {client!r} sent {len(records)} ArrayRecords, expected one with its model")
        local = _arrays(records[0])
        for name, tensor in local.items():
            if name not in global_model or tensor.shape != global_model[name].shape:
                raise ConfigurationError(
                    f"client {client!r} sent {name!r}, which the model does not have, or has in another shape"
                )
        updates[client] = updates_from(local, global_model)
        for record in reply.content.metric_records.values():
            if key in record:
                examples[client] = int(record[key])
    return updates, examples if examples.keys() == updates.keys() else None


def _arrays(record: Any) -> dict[str, NDArray[Any]]:
    return {str(name): np.asarray(array.numpy()) for name, array in record.items()}
