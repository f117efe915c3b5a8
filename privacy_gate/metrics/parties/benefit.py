"""What clients gain from a federation: whether they do better than alone, and whether larger contributors gain more."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from privacy_gate.arrays import Bools, Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.paired import paired_score
from privacy_gate.metrics.parties.disparity import holm
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import DIFFERENCE, SHARE, Metric, measured

CLIENT_BENEFIT = Metric(
    "client_benefit",
    title="clients served no worse than by training alone",
    unit="share",
    range=SHARE,
    worse="lower",
    resolves="Holdout examples of every client: about 400 of each if the models hardly differ.",
    means="The share of clients that do not lose by taking part in the federation.",
    remedy="Adapt the model for the clients that lose, or let them train alone.",
)
CONTRIBUTION_MATCH = Metric(
    "contribution_match",
    title="correlation of what clients contribute with the accuracy they get",
    unit="correlation",
    range=DIFFERENCE,
    worse="neither",
    resolves="At least 4 clients, with holdout examples of each.",
    means="Whether clients that contribute more are served better.",
    remedy="Discuss with the clients whether this is what they expect.",
)
METRICS = (
    CLIENT_BENEFIT,
    CONTRIBUTION_MATCH,
)

MARGIN = 0.01
"""A client may be this much worse off than by training alone and still count as served no worse."""

FEWEST_CLIENTS = 4
"""With fewer clients Fisher's z has no standard error."""


def client_benefit(federated: Bools, alone: Bools, client: NDArray[Any], confidence: float) -> Measurement:
    """Share of clients whose accuracy is at least that of the model they train alone, minus MARGIN.

    federated, alone (N,): whether each model is right on a client's own test row; client (N,). The clients are the
    whole population; their rows are a sample. The estimate uses each client's observed accuracies, so if all clients
    gain nothing, sampling noise alone makes some look worse. Interval: from the clients that are significantly no
    worse to all clients except the significantly worse, by score tests of the paired difference (`paired_score`),
    Holm-corrected over clients, with half of the error at each end.

    The number of rows that a client needs depends on its gain: a few if the gain is large; 381 at 95 % confidence if
    the two models agree on every row, or 781 if there are nine more such clients.
    """
    names, code = np.unique(client, return_inverse=True)
    if not len(names):
        return not_measured("client_benefit", "needs n >= 1 rows, found 0")
    rows = np.bincount(code)
    won = np.bincount(code[federated & ~alone], minlength=len(names))
    lost = np.bincount(code[alone & ~federated], minlength=len(names))
    # z tests "worse than alone by MARGIN or more": large z means no worse, very negative z means worse.
    z, tail = paired_score(won, lost, rows, -MARGIN), (1 - confidence) / 2
    served, worse = holm(ndtr(-z)) <= tail, holm(ndtr(z)) <= tail
    # 1e-12: a client exactly at the margin counts as served despite rounding.
    value = float(((won - lost) / rows >= -MARGIN - 1e-12).mean())
    samples = f"{len(names):,} clients, {int(rows.sum()):,} rows"
    ends = (float(served.mean()), float(1 - worse.mean()))
    method = "paired score tests, Holm over clients"
    return measured(CLIENT_BENEFIT, value, ends, confidence, method, samples)


def contribution_match(brought: Floats, served: Floats, confidence: float) -> Measurement:
    """Pearson's correlation over clients between contribution and benefit: Lyu et al. 2020 (arXiv 2008.12161).

    brought (K,): accuracy of the model each client trains alone, or its number of rows; served (K,): its accuracy with
    the federation's model. 1 if clients that contribute more get more; 0 if all get the same whatever they contribute.
    For reports only, never for limits: it does not say how much anyone gains. Interval: Fisher's z over clients.
    Clients with few test rows pull the correlation towards 0; the interval does not account for that.
    """
    if brought.shape != served.shape or brought.ndim != 1 or not np.isfinite([brought, served]).all():
        raise EvidenceError("expected two arrays of finite numbers (K,): what each client contributes and what it gets")
    clients = len(brought)
    if clients < FEWEST_CLIENTS:
        return not_measured("contribution_match", f"needs >= {FEWEST_CLIENTS} clients, found {clients}")
    if min(np.ptp(brought), np.ptp(served)) == 0:
        return not_measured("contribution_match", "all clients contribute the same, or all get the same")
    value = float(np.clip(np.corrcoef(brought, served)[0, 1], -1, 1))
    # Fisher's z has standard error 1 / sqrt(K - 3); it is infinite at -1 and 1, hence the clip.
    z = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    reach = ndtri((1 + confidence) / 2) / np.sqrt(max(clients - 3, 1))
    ends = (float(np.tanh(z - reach)), float(np.tanh(z + reach)))
    method, samples = "Fisher's z over clients", f"{clients:,} clients"
    return measured(CONTRIBUTION_MATCH, value, ends, confidence, method, samples)
