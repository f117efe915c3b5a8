"""Round logs of federations that Flower trains (`pip install 'privacy-gate[flower]'`).

    strategy = logged(FedAvg(...), only=["fc.weight", "fc.bias"])
    with mlflow.start_run():
        result = strategy.start(grid, initial_arrays, num_rounds=20)
        # log the model here too, so that the gate finds the log beside it

Nothing of Flower is imported: any strategy of its message API will do (1.21 or later).
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from privacy_gate.errors import ConfigurationError, UnavailableError
from privacy_gate.producer import log_round
from privacy_gate.roundlog import updates_from

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

    What each client sent is logged as it came, before the strategy joins it. A registry that does not answer costs
    that round's entry, with a warning, and not the training.

    client_of  the client of a reply, as the audit table names it
    only, run_id, tracking_uri  as in log_round
    Raises ConfigurationError, in the first round, for what no round can be: two clients of one name, say.
    """
    inner: Any = strategy
    configure, aggregate = inner.configure_train, inner.aggregate_train
    sent: dict[str, NDArray[Any]] = {}

    def configure_train(server_round: int, arrays: Any, *rest: Any, **named: Any) -> Any:
        sent.clear()
        sent.update(_arrays(arrays))
        return configure(server_round, arrays, *rest, **named)

    def aggregate_train(server_round: int, replies: Iterable[Any]) -> Any:
        replies = list(replies)
        updates: dict[str, Mapping[str, Any]] = {}
        examples: dict[str, int] = {}
        for reply in replies:
            if reply.has_error():
                continue
            client = client_of(reply)
            if client in updates:
                raise ConfigurationError(
                    f"round {server_round}: two replies of the client {client!r}; let each say its own name in a "
                    'ConfigRecord, {"client": NAME}, or pass client_of='
                )
            (local,) = reply.content.array_records.values()
            updates[client] = updates_from(_arrays(local), sent)
            for record in reply.content.metric_records.values():
                if (key := getattr(inner, "weighted_by_key", "num-examples")) in record:
                    examples[client] = int(record[key])
        if updates:
            known = examples if examples.keys() == updates.keys() else None
            try:
                log_round(server_round, sent, updates, known, only=only, run_id=run_id, tracking_uri=tracking_uri)
            except UnavailableError as error:
                warnings.warn(f"round {server_round} is not logged: {error}", RuntimeWarning, stacklevel=2)
        return aggregate(server_round, replies)

    inner.configure_train, inner.aggregate_train = configure_train, aggregate_train
    return strategy


def _arrays(record: Any) -> dict[str, NDArray[Any]]:
    return {str(name): np.asarray(array.numpy()) for name, array in record.items()}
