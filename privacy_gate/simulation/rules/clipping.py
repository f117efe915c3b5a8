"""Clipping: bounds on an update's norm that limit its influence, before another rule or as a rule of their own."""

import torch

from privacy_gate.simulation.rules.geometry import compiles, finite_rows, norms
from privacy_gate.simulation.rules.known import NOTHING, Known, refuse_few


def clip(updates: torch.Tensor, f: int, known: Known = NOTHING, *, tau: float | None = None) -> torch.Tensor:
    """Updates (..., n, d) clipped to norm tau; if tau is None, to the median norm. Rows with inf or NaN become 0."""
    refuse_few(updates, f, "clip")
    clean, finite = finite_rows(updates)
    length = norms(clean)
    return _clipped(clean, length, _reach(length, finite, tau))


def clip_adaptively(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """The floor(2 f (n - f) / n) longest updates clipped to the norm of the next longest: Allouah et al. 2025, ARC."""
    refuse_few(updates, f, "arc")
    clean, finite = finite_rows(updates)
    n = updates.shape[-2]
    clipped = int(2 * f / n * (n - f))
    length = norms(clean)
    reach = length.masked_fill(~finite, torch.inf).sort(-1).values[..., n - clipped - 1]
    return _clipped(clean, length, reach.unsqueeze(-1))


def norm_clipping(updates: torch.Tensor, f: int, known: Known = NOTHING, *, tau: float | None = None) -> torch.Tensor:
    """The mean of clipped updates: Sun et al. 2019 (arXiv 1911.07963). tau as in `clip`."""
    refuse_few(updates, f, "norm_clipping")
    return clip(updates, f, known, tau=tau).mean(-2)


def centered_clipping(
    updates: torch.Tensor, f: int, known: Known = NOTHING, *, tau: float | None = None, iterations: int = 1
) -> torch.Tensor:
    """v + mean of clipped (u_i - v); v starts at known.previous, or 0: Karimireddy et al. 2021 (arXiv 2012.10333).

    tau: the bound on |u_i - v|; None: the median of these distances, which f < n / 2 updates cannot control.
    """
    refuse_few(updates, f, "centered_clipping")
    point = torch.zeros_like(updates[..., 0, :]) if known.previous is None else known.previous
    if compiles(updates):
        from privacy_gate.native import rules as compiled_rules  # noqa: PLC0415

        return compiled_rules.clipped_from(updates, point, tau, iterations)
    return stacked_clipping(updates, point, tau, iterations)


def stacked_clipping(updates: torch.Tensor, point: torch.Tensor, tau: float | None, iterations: int) -> torch.Tensor:
    """`iterations` steps of `centered_clipping` from `point` (..., d), in torch."""
    clean, finite = finite_rows(updates)
    for _ in range(iterations):
        away = clean - point.unsqueeze(-2)
        length = norms(away)
        point = point + _clipped(away, length, _reach(length, finite, tau), finite).mean(-2)
    return point


def _reach(length: torch.Tensor, finite: torch.Tensor, tau: float | None) -> torch.Tensor:
    """The norm to clip to, (..., 1) float64: tau, or the median of lengths (..., n); rows not finite count as inf."""
    if tau is not None:
        return torch.full_like(length[..., :1], tau)
    ascending = length.masked_fill(~finite, torch.inf).sort(-1).values
    # The lower median: for even n it is still the length of an actual update.
    return ascending[..., (length.shape[-1] - 1) // 2].unsqueeze(-1)


def _clipped(
    updates: torch.Tensor, length: torch.Tensor, reach: torch.Tensor, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Updates (..., n, d) of lengths (..., n) clipped to reach (..., 1); rows that are not kept (..., n) become 0."""
    factor = (reach / length.clamp(min=torch.finfo(torch.float64).tiny)).clamp_(max=1)
    if kept is not None:
        factor = factor * kept
    return updates * factor.to(updates.dtype).unsqueeze(-1)
