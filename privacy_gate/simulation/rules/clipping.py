"""Rules that limit how far one update can pull: a bound on its length, before or instead of another rule."""

import torch

from privacy_gate.simulation.rules.geometry import compiles, finite_rows, norms
from privacy_gate.simulation.rules.known import NOTHING, Known, refuse_few


def clip(updates: torch.Tensor, f: int, known: Known = NOTHING, *, tau: float | None = None) -> torch.Tensor:
    """Updates (..., n, d) shortened to norm tau; to the median of the norms where tau is None. inf and NaN become 0."""
    refuse_few(updates, f, "clip")
    clean, finite = finite_rows(updates)
    length = norms(clean)
    return _shortened(clean, length, _reach(length, finite, tau))


def clip_adaptively(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """The floor(2 f (n - f) / n) longest updates shortened to the next longest: Allouah et al. 2025, ARC."""
    refuse_few(updates, f, "arc")
    clean, finite = finite_rows(updates)
    n = updates.shape[-2]
    shortened = int(2 * f / n * (n - f))
    length = norms(clean)
    reach = length.masked_fill(~finite, torch.inf).sort(-1).values[..., n - shortened - 1]
    return _shortened(clean, length, reach.unsqueeze(-1))


def norm_clipping(updates: torch.Tensor, f: int, known: Known = NOTHING, *, tau: float | None = None) -> torch.Tensor:
    """The mean of clipped updates: Sun et al. 2019 (arXiv 1911.07963). tau as in `clip`."""
    refuse_few(updates, f, "norm_clipping")
    return clip(updates, f, known, tau=tau).mean(-2)


def centered_clipping(
    updates: torch.Tensor, f: int, known: Known = NOTHING, *, tau: float | None = None, iterations: int = 1
) -> torch.Tensor:
    """v + the mean of clipped u_i - v, from v = known.previous, or 0: Karimireddy et al. 2021 (arXiv 2012.10333).

    tau None: the median of the distances to v, so that f < n / 2 updates cannot set the bound.
    """
    refuse_few(updates, f, "centered_clipping")
    point = torch.zeros_like(updates[..., 0, :]) if known.previous is None else known.previous
    if compiles(updates):
        from privacy_gate.native import rules as compiled_rules  # noqa: PLC0415

        return compiled_rules.clipped_from(updates, point, tau, iterations)
    return stacked_clipping(updates, point, tau, iterations)


def stacked_clipping(updates: torch.Tensor, point: torch.Tensor, tau: float | None, iterations: int) -> torch.Tensor:
    """So many steps from `point` (..., d) by torch: see `centered_clipping`."""
    clean, finite = finite_rows(updates)
    for _ in range(iterations):
        away = clean - point.unsqueeze(-2)
        length = norms(away)
        point = point + _shortened(away, length, _reach(length, finite, tau), finite).mean(-2)
    return point


def _reach(length: torch.Tensor, finite: torch.Tensor, tau: float | None) -> torch.Tensor:
    """(..., 1) float64: tau, or the median of lengths (..., n), where rows not finite count as infinitely long."""
    if tau is not None:
        return torch.full_like(length[..., :1], tau)
    ascending = length.masked_fill(~finite, torch.inf).sort(-1).values
    return ascending[..., (length.shape[-1] - 1) // 2].unsqueeze(-1)


def _shortened(
    updates: torch.Tensor, length: torch.Tensor, reach: torch.Tensor, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Updates (..., n, d) of lengths (..., n) no longer than reach (..., 1); 0 where not kept (..., n)."""
    factor = (reach / length.clamp(min=torch.finfo(torch.float64).tiny)).clamp_(max=1)
    if kept is not None:
        factor = factor * kept
    return updates * factor.to(updates.dtype).unsqueeze(-1)
