"""How a server combines many updates into one; the list of all rules, and how they are named and chained.

To add a rule, write a function in a file here and a line in AGGREGATORS; the family's tests then cover it.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.rules.clipping import centered_clipping, clip, clip_adaptively, norm_clipping
from privacy_gate.simulation.rules.geometry import finite_rows, norms, weighted_sum
from privacy_gate.simulation.rules.known import NOTHING, Aggregate, Known, refuse_few, required
from privacy_gate.simulation.rules.preaggregation import bucketing, nearest_neighbour_mixing
from privacy_gate.simulation.rules.robust import (
    bulyan,
    geometric_median,
    krum,
    meamed,
    median,
    minimum_diameter,
    multi_krum,
    trimmed_mean,
)


def mean(updates: torch.Tensor, f: int, known: Known = NOTHING, *, cap: float | None = None) -> torch.Tensor:
    """FedAvg: updates weighted by the example counts that clients claim; McMahan et al. 2017 (arXiv 1602.05629).

    cap: limits each claim to this multiple of the median claim; None: claims are trusted. Not robust: a single
    byzantine update, if large enough, moves the mean anywhere.
    """
    refuse_few(updates, f, "mean")
    if known.counts is None:
        return updates.mean(-2)
    counts = known.counts.double()
    if cap is not None:
        counts = torch.minimum(counts, cap * counts.median(-1, keepdim=True).values)
    return weighted_sum(updates, counts / counts.sum(-1, keepdim=True))


def uniform_mean(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """The mean with equal weights, whatever the clients claim."""
    refuse_few(updates, f, "uniform_mean")
    return updates.mean(-2)


def capped_mean(updates: torch.Tensor, f: int, known: Known = NOTHING, *, cap: float = 2.0) -> torch.Tensor:
    """FedAvg with every claim limited to `cap` times the median claim."""
    return mean(updates, f, known, cap=cap)


def fltrust(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Updates rescaled to |u_0|, averaged with weights relu(cos(u_i, u_0)): Cao et al. 2021 (arXiv 2012.13995).

    u_0 is known.root, the server's own update. The result is 0 if no update has a positive cosine with it.
    """
    refuse_few(updates, f, "fltrust")
    root = required(known.root, "the server's own update", "fltrust")
    clean, _ = finite_rows(updates)
    tiny = torch.finfo(torch.float64).tiny
    length, own = norms(clean).clamp_(min=tiny), norms(root).unsqueeze(-1)
    inner = (clean @ root.unsqueeze(-1)).squeeze(-1).double()
    # Relu of the cosine; the lower bounds `tiny` avoid 0 / 0 for updates without length.
    trust = (inner / length / own.clamp(min=tiny)).clamp_(min=0)
    return weighted_sum(clean, trust / trust.sum(-1, keepdim=True).clamp_(min=tiny) * own / length)


def q_fedavg(updates: torch.Tensor, f: int, known: Known = NOTHING, *, q: float = 1.0) -> torch.Tensor:
    """Clients with a larger loss get more weight: Li et al. 2020 (arXiv 1905.10497), with L = 1 / known.lr.

    -sum D_k / sum h_k, D_k = F_k^q L (w - w_k), h_k = q F_k^(q-1) |L (w - w_k)|^2 + L F_k^q. q = 0 is the plain mean.
    The paper's F_k is the loss on all rows of client k; here it is known.losses, the loss on its first batch before
    any step.
    """
    refuse_few(updates, f, "q_fedavg")
    loss = required(known.losses, "the clients' losses", "q_fedavg").double().clamp(min=1e-10)
    if known.lr is None:
        raise ConfigurationError("q_fedavg needs the clients' learning rate, found none: give `lr`")
    lipschitz = 1 / known.lr
    square = (lipschitz * norms(updates)) ** 2
    # Both sums are over clients; norms(updates) is |w - w_k|, whose sign does not matter.
    below = (q * loss ** (q - 1) * square + lipschitz * loss**q).sum(-1, keepdim=True)
    return weighted_sum(updates, lipschitz * loss**q / below)


AGGREGATORS: dict[str, Aggregate] = {
    "mean": mean,
    "uniform_mean": uniform_mean,
    "capped_mean": capped_mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "minimum_diameter": minimum_diameter,
    "meamed": meamed,
    "norm_clipping": norm_clipping,
    "fltrust": fltrust,
    "q_fedavg": q_fedavg,
}
"""Every rule by the name that recipes use."""

PREAGGREGATIONS: dict[str, Aggregate] = {
    "nnm": nearest_neighbour_mixing,
    "bucketing": bucketing,
    "clip": clip,
    "arc": clip_adaptively,
}
"""Every step that may precede a rule, by the name that recipes use under `before`."""


@dataclass(frozen=True)
class RuleStep:
    """A function from AGGREGATORS or PREAGGREGATIONS, with its parameters.

    Raises ConfigurationError on a name or a parameter that does not exist.
    """

    name: str
    parameters: tuple[tuple[str, float | None], ...] = ()

    def __post_init__(self) -> None:
        known = {**PREAGGREGATIONS, **AGGREGATORS}
        if self.name not in known:
            raise ConfigurationError(f"no aggregator is called {self.name!r}: use one of {', '.join(known)}")
        signature = inspect.signature(known[self.name])
        # A rule's parameters are its keyword-only arguments.
        allowed = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        for name, _ in self.parameters:
            if name not in allowed:
                raise ConfigurationError(
                    f"{self.name} has no parameter {name!r}; it takes {', '.join(allowed) or 'none'}"
                )


@dataclass(frozen=True)
class Rule:
    """An aggregator, and the pre-aggregation steps that precede it, in order."""

    aggregator: RuleStep = RuleStep("mean")
    before: tuple[RuleStep, ...] = ()

    def __post_init__(self) -> None:
        if self.aggregator.name not in AGGREGATORS:
            raise ConfigurationError(
                f"{self.aggregator.name} cannot come last: end with one of {', '.join(AGGREGATORS)}"
            )
        for step in self.before:
            if step.name not in PREAGGREGATIONS:
                raise ConfigurationError(
                    f"{step.name} can only come last: in `before`, use {', '.join(PREAGGREGATIONS)}"
                )
        buckets = [step.name for step in self.before].count("bucketing")
        if buckets > 1 or (buckets and self.aggregator.name == "q_fedavg"):
            raise ConfigurationError(
                f"{self} is impossible: use bucketing at most once, and never with q_fedavg, as buckets have no losses"
            )

    def __call__(self, updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
        """Aggregates updates (..., n, d), at most f of them byzantine, into (..., d)."""
        for step in self.before:
            rows = updates.shape[-2]
            updates = PREAGGREGATIONS[step.name](updates, f, known, **dict(step.parameters))
            if updates.shape[-2] != rows:  # updates became buckets, for which clients report no counts or losses
                known = replace(known, counts=None, losses=None)
        return AGGREGATORS[self.aggregator.name](updates, f, known, **dict(self.aggregator.parameters))

    def __str__(self) -> str:
        return " + ".join(step.name for step in (*self.before, self.aggregator))


def step(name: str, parameters: Mapping[str, float | None] | None = None) -> RuleStep:
    """A step with its parameters as a mapping."""
    return RuleStep(name, tuple(sorted((parameters or {}).items())))


def rule(*names: str | RuleStep) -> Rule:
    """A rule from the names of its steps, in order; the last one is the aggregator.

    >>> str(rule("nnm", step("centered_clipping", {"tau": 1.0})))
    'nnm + centered_clipping'
    """
    steps = [name if isinstance(name, RuleStep) else RuleStep(name) for name in names]
    return Rule(steps[-1], tuple(steps[:-1]))
