"""The slow reference of the simulator: plain NumPy, one cell at a time, rules and attacks by definition."""

import math

import numpy as np
from scipy.stats import norm

from privacy_gate.arrays import Floats
from privacy_gate.simulation.adversaries import ALIE_SEARCH
from privacy_gate.simulation.cells import Cell, Draws
from privacy_gate.simulation.samples import Samples


def train(cell: Cell, train: Samples, test: Samples, draws: Draws) -> tuple[float, Floats]:
    """Mean test accuracy over the last tenth of the rounds, and the last head (C, D + 1)."""
    training, classes = cell.training, int(max(train.label.max(), test.label.max())) + 1
    x = np.hstack([train.features, np.ones((len(train.features), 1), train.features.dtype)])
    tests = np.hstack([test.features, np.ones((len(test.features), 1), test.features.dtype)])
    rng = draws.generator("partition", cell.seed)
    parts = cell.partition.rows(train.label, training.clients, rng, train.client)
    head = before = np.zeros((classes, x.shape[1]), x.dtype)
    previous, right = np.zeros(head.size, x.dtype), []
    for turn in range(training.rounds):
        updates = []
        present = draws.participants(training, cell.byzantine, cell.seed, turn)
        counts = np.array([len(parts[client]) for client in present])
        late = present[: training.late(cell.byzantine, turn)]
        for client in present:
            drawn, weight = draws.batches(training, len(parts[client]), cell.seed, client, turn)
            label = train.label
            if cell.adversary == "label_flip" and client >= training.clients - cell.byzantine:
                label = classes - 1 - label
            start = before if client in late else head
            updates.append(local(start, x, label, parts[client][drawn], weight, cell).ravel())
        received = np.array(updates)
        bad = training.participants(cell.byzantine)[1]
        if bad and cell.adversary != "label_flip":
            noise = draws.generator("noise", cell.seed, turn)
            received[-bad:] = attack(cell, received[:-bad], bad, counts, previous, noise)
        previous = aggregate(str(cell.rule), received, cell.assumed, counts, previous)
        before, head = head, head + previous.reshape(head.shape)
        if turn >= training.rounds - training.last:
            right.append(np.mean((tests @ head.T).argmax(1) == test.label))
    return float(np.mean(right)), head


def local(head: Floats, x: Floats, label: Floats, rows: Floats, weight: Floats, cell: Cell) -> Floats:
    """The update of the head by local steps."""
    own = head.copy()
    for chosen, share in zip(rows, weight, strict=True):
        batch = x[chosen]
        logits = batch @ own.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(chosen)), label[chosen]] -= 1
        gradient = (p * share[:, None].astype(x.dtype)).T @ batch
        own = own - cell.training.lr * (gradient + cell.training.prox * (own - head))
    return own - head


def attack(cell: Cell, honest: Floats, f: int, counts: Floats, previous: Floats, rng: np.random.Generator) -> Floats:
    """The updates that the f byzantine clients send, (f, d), or (d,) if all are equal."""
    mu, s = honest.mean(0), honest.std(0, ddof=1)
    n = len(honest) + f
    distances = ((honest[:, None] - honest[None]) ** 2).sum(-1)
    away = honest - mu
    match cell.adversary:
        case "sign_flip":
            return -mu
        case "ipm_0.1":
            return -0.1 * mu
        case "ipm_10":
            return -10 * mu
        case "alie":
            supporters = n // 2 + 1 - f
            return mu - norm.ppf((n - f - supporters) / (n - f)) * s
        case "alie_search":

            def moved(z: float) -> float:
                sent = np.vstack([honest, np.tile(mu - z * s, (f, 1))])
                return float(np.linalg.norm(aggregate(str(cell.rule), sent, cell.assumed, counts, previous) - mu))

            return mu - max(ALIE_SEARCH, key=moved) * s
        case "min_max":
            low, high = 0.0, 1e3
            for _ in range(40):
                g = (low + high) / 2
                fits = ((away + g * s) ** 2).sum(1).max() <= distances.max()
                low, high = (g, high) if fits else (low, g)
            return mu - low * s
        case "min_sum":
            return mu - math.sqrt((distances.sum(1).max() - (away**2).sum()) / (len(honest) * (s**2).sum())) * s
        case "mimic":
            return honest[0]
        case "gaussian":
            return 10 * np.sqrt((honest**2).mean()) * rng.standard_normal((f, honest.shape[1]))
    raise AssertionError(cell.adversary)


def aggregate(rule: str, u: Floats, f: int, counts: Floats, previous: Floats) -> Floats:
    """Aggregates (n, d) into (d,)."""
    n = len(u)
    match rule:
        case "mean":
            return (counts / counts.sum()) @ u
        case "uniform_mean":
            return u.mean(0)
        case "median":
            return np.median(u, axis=0)
        case "trimmed_mean":
            return np.sort(u, axis=0)[f : n - f].mean(0)
        case "geometric_median":
            z = np.median(u, axis=0)
            for _ in range(5):
                w = 1 / np.maximum(0.1, np.linalg.norm(u - z, axis=1))
                z = (w[:, None] * u).sum(0) / w.sum()
            return z
        case "multi_krum":
            d = squared(u)
            scores = np.sort(d, axis=1)[:, 1 : n - f - 1].sum(1)
            return u[np.argsort(scores, kind="stable")[: n - f]].mean(0)
        case "centered_clipping":
            away = u - previous
            length = np.linalg.norm(away, axis=1)
            tau = np.sort(length)[(n - 1) // 2]
            return previous + (away * np.minimum(1, tau / np.maximum(length, 1e-300))[:, None]).mean(0)
        case "nnm + trimmed_mean":
            near = np.argsort(squared(u), axis=1, kind="stable")[:, : n - f]
            return aggregate("trimmed_mean", u[near].mean(1), f, counts, previous)
    raise AssertionError(rule)


def squared(u: Floats) -> Floats:
    """Squared distances (n, n) through the Gram matrix, in float64."""
    wide = u.astype(np.float64)
    square = (wide**2).sum(1)
    found = np.maximum(square[:, None] + square - 2 * wide @ wide.T, 0)
    np.fill_diagonal(found, 0)
    return found
