"""Pre-aggregation: steps that transform updates before a rule, (..., n, d) -> (..., n', d). See known.py."""

import torch

from privacy_gate.dossier.federation.needs import BUCKET
from privacy_gate.simulation.rules.geometry import compiles, finite_rows, smallest, squared_distances
from privacy_gate.simulation.rules.known import NOTHING, Known, refuse_few, required


def nearest_neighbour_mixing(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Each update becomes the mean of its n - f nearest, itself included: Allouah et al. 2023 (arXiv 2302.01772).

    An update that is not finite has no neighbours and becomes inf, so that the rule that follows discards it.
    """
    refuse_few(updates, f, "nnm")
    keep = updates.shape[-2] - f
    if compiles(updates):
        from privacy_gate.native import rules as compiled_rules  # noqa: PLC0415

        return compiled_rules.mixed(updates, keep)
    return stacked_mixing(updates, keep)


def stacked_mixing(updates: torch.Tensor, keep: int) -> torch.Tensor:
    """The mean of the `keep` updates (..., n, d) nearest to each, itself included, in torch: (..., n, d)."""
    clean, finite = finite_rows(updates)
    near = smallest(squared_distances(updates), keep) & finite.unsqueeze(-2)
    mixed = (near.to(clean.dtype) / near.sum(-1, keepdim=True).clamp(min=1)) @ clean
    return mixed if bool(finite.all()) else mixed.masked_fill(~finite.unsqueeze(-1), torch.inf)


def bucketing(updates: torch.Tensor, f: int, known: Known = NOTHING, *, size: int = BUCKET) -> torch.Tensor:
    """Means of buckets of `size` updates in random order: Karimireddy et al. 2022 (arXiv 2006.09365).

    n' = ceil(n / size) buckets; at most f of them contain a byzantine update, so f does not change.
    """
    refuse_few(updates, f, "bucketing", size)
    order = required(known.order, "a random order", "bucketing")
    shuffled = updates.gather(-2, order.unsqueeze(-1).expand(updates.shape))
    buckets = [shuffled[..., first : first + size, :] for first in range(0, shuffled.shape[-2], size)]
    return torch.stack([bucket.mean(-2) for bucket in buckets], -2)
