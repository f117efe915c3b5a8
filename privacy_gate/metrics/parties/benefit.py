"""What clients have of a federation: whether they fare better than alone, and whether those who bring more get more."""

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
"""How much worse than training alone a client may fare and still count as no worse off."""

FEWEST_CLIENTS = 4
"""Clients below which Fisher's z has no standard error."""


def client_benefit(federated: Bools, alone: Bools, client: NDArray[Any], confidence: float) -> Measurement:
    """Share of clients whose accuracy is no worse than that of the model they train alone, less MARGIN.

    federated, alone (N,): whether each model is right on a client's own test row; client (N,). The clients are all
    there are; rows are a sample. The estimate counts clients by their few rows, so where all fare alike chance alone
    takes some away. Interval: clients surely no worse, and clients not surely worse, by score tests of the paired
    difference (`paired_score`), Holm-corrected over clients, half of the error at each end.

    What a client needs hangs on what it gains: a few rows where that is much; where the models agree on every row, 381
    of them at 95 %, or 781 beside nine others.
    """
    names, code = np.unique(client, return_inverse=True)
    if not len(names):
        return not_measured("client_benefit", "needs n >= 1 rows, found 0")
    rows = np.bincount(code)
    won = np.bincount(code[federated & ~alone], minlength=len(names))
    lost = np.bincount(code[alone & ~federated], minlength=len(names))
    z, tail = paired_score(won, lost, rows, -MARGIN), (1 - confidence) / 2
    served, worse = holm(ndtr(-z)) <= tail, holm(ndtr(z)) <= tail
    value = float(((won - lost) / rows >= -MARGIN - 1e-12).mean())
    samples = f"{len(names):,} clients, {int(rows.sum()):,} rows"
    ends = (float(served.mean()), float(1 - worse.mean()))
    method = "paired score tests, Holm over clients"
    return measured(CLIENT_BENEFIT, value, ends, confidence, method, samples)


def contribution_match(brought: Floats, served: Floats, confidence: float) -> Measurement:
    """Pearson's correlation over clients of what each brings with what it gets: Lyu et al. 2020 (arXiv 2008.12161).

    brought (K,): accuracy of the model each client trains alone, or its number of rows; served (K,): its accuracy with
    the federation's. 1 where those who bring more get more, 0 where all get the same whatever they bring. For reports,
    never for limits: it says nothing of how much anyone gains. Interval: Fisher's z over clients; few test rows a
    client pull it towards 0, which it does not count.
    """
    if brought.shape != served.shape or brought.ndim != 1 or not np.isfinite([brought, served]).all():
        raise EvidenceError("expected what each client brings (K,) and gets (K,), finite numbers, as many of both")
    clients = len(brought)
    if clients < FEWEST_CLIENTS:
        return not_measured("contribution_match", f"needs >= {FEWEST_CLIENTS} clients, found {clients}")
    if min(np.ptp(brought), np.ptp(served)) == 0:
        return not_measured("contribution_match", "all clients bring the same, or get the same")
    value = float(np.clip(np.corrcoef(brought, served)[0, 1], -1, 1))
    z = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    reach = ndtri((1 + confidence) / 2) / np.sqrt(max(clients - 3, 1))
    ends = (float(np.tanh(z - reach)), float(np.tanh(z + reach)))
    method, samples = "Fisher's z over clients", f"{clients:,} clients"
    return measured(CONTRIBUTION_MATCH, value, ends, confidence, method, samples)
