"""Updates that byzantine clients send. They are omniscient: they know all honest updates, the rule and last aggregate.

To add an adversary, write a function here and a line in ADVERSARIES; the family's tests then cover it. Axis letters: h
honest updates, f byzantine updates, d coordinates. Attacks produce updates, never weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from privacy_gate.dossier.federation.needs import unmet_by_attack
from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.rules.geometry import moments, norms, squared_distances

IPM_SEARCH = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Values of eps that the inner-product search tries."""

ALIE_SEARCH = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0)
"""Values of z, in standard deviations, that the search of "a little is enough" tries."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything the f colluding clients know in a round.

    honest    (..., h, d)  the updates of the honest clients
    f         number of colluding clients
    own       (..., f, d)  their own updates after local training, on data that they may have poisoned
    previous  (..., d)     the last aggregate; None in the first round
    noise     (f, d) or (..., f, d), standard normal, for adversaries that send noise
    respond   maps Z alternative attacks (..., Z, f, d) to the aggregate that each would produce, (..., Z, d)
    """

    honest: torch.Tensor
    f: int
    own: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    respond: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def clients(self) -> int:
        """n = h + f."""
        return self.honest.shape[-2] + self.f

    def alike(self, update: torch.Tensor) -> torch.Tensor:
        """The same update (..., d) sent by all f colluding clients: (..., f, d)."""
        return update.unsqueeze(-2).expand(*update.shape[:-1], self.f, update.shape[-1])


Craft = Callable[[Scene], torch.Tensor]
"""Maps a scene to the updates that are sent, (..., f, d), in the dtype of the honest updates."""


def sign_flip(scene: Scene) -> torch.Tensor:
    """-mu, with mu the mean of the honest updates."""
    return scene.alike(-scene.honest.mean(-2))


def inner_product_manipulation(scene: Scene, *, eps: float) -> torch.Tensor:
    """-eps mu: Xie et al. 2020 (arXiv 1903.03936)."""
    return scene.alike(-eps * scene.honest.mean(-2))


def inner_product_search(scene: Scene, *, factors: Sequence[float] = IPM_SEARCH) -> torch.Tensor:
    """-eps mu with the eps that moves the aggregate farthest from mu."""
    centre = scene.honest.mean(-2)
    return _farthest(scene, centre, [-eps * centre for eps in factors])


def alie_z(n: int, f: int) -> float:
    """Phi^-1((n - f - s) / (n - f)), s = floor(n / 2 + 1) - f: Baruch et al. 2019 (arXiv 1902.06156).

    The largest deviation that still hides among a majority: s honest clients deviate more and so support the attack.
    Any minority can use it; raises ConfigurationError if no client, or at least half of them, is byzantine.

    >>> round(alie_z(50, 8), 4), alie_z(10, 2)
    (0.18, 0.0)
    """
    if reason := unmet_by_attack("alie", n, f):
        raise ConfigurationError(reason)
    supporters = n // 2 + 1 - f
    return float(ndtri((n - f - supporters) / (n - f)))


def a_little_is_enough(scene: Scene, *, z: float | None = None) -> torch.Tensor:
    """mu - z s, with s the standard deviation (ddof 1) of each coordinate; `alie_z` gives z if it is None."""
    factor = alie_z(scene.clients, scene.f) if z is None else z
    centre, spread = moments(scene.honest)
    return scene.alike(centre - factor * spread)


def a_little_is_enough_search(scene: Scene, *, factors: Sequence[float] = ALIE_SEARCH) -> torch.Tensor:
    """mu - z s with the z that moves the aggregate farthest from mu."""
    centre, spread = moments(scene.honest)
    return _farthest(scene, centre, [centre - z * spread for z in factors])


def min_max(scene: Scene) -> torch.Tensor:
    """m = mu - g s, g the largest with max_i |m - u_i|^2 <= max_ij |u_i - u_j|^2: Shejwalkar & Houmansadr 2021.

    In closed form: each honest client gives a quadratic in g with one positive root; g is the smallest of these roots.
    """
    centre, spread = moments(scene.honest)
    away = centre.unsqueeze(-2) - scene.honest
    # For each client i: |s|^2 g^2 - 2 (away_i . s) g - room_i = 0. The clamps guard against rounding below 0.
    room = squared_distances(scene.honest).amax((-1, -2)).unsqueeze(-1) - norms(away) ** 2
    along = (away @ spread.unsqueeze(-1)).squeeze(-1).double()
    square = (norms(spread) ** 2).unsqueeze(-1).clamp_(min=torch.finfo(torch.float64).tiny)
    root = (along + (along**2 + square * room.clamp_(min=0)).sqrt()) / square
    return scene.alike(centre - root.amin(-1, keepdim=True).to(spread.dtype) * spread)


def min_sum(scene: Scene) -> torch.Tensor:
    """m = mu - g s, g the largest with sum_i |m - u_i|^2 <= max_i sum_j |u_i - u_j|^2: Shejwalkar & Houmansadr 2021."""
    centre, spread = moments(scene.honest)
    away = norms(centre.unsqueeze(-2) - scene.honest)
    # Summed over clients, the term linear in g vanishes, because mu is their mean: h |s|^2 g^2 = room.
    room = squared_distances(scene.honest).sum(-1).amax(-1) - (away**2).sum(-1)
    square = (norms(spread) ** 2).clamp_(min=torch.finfo(torch.float64).tiny) * scene.honest.shape[-2]
    factor = (room.clamp_(min=0) / square).sqrt().unsqueeze(-1)
    return scene.alike(centre - factor.to(spread.dtype) * spread)


def mimic(scene: Scene, *, client: int = 0) -> torch.Tensor:
    """A copy of honest client `client`'s update: Karimireddy et al. 2022 (arXiv 2006.09365). Over-weights its data."""
    return scene.alike(scene.honest[..., client, :])


def gaussian(scene: Scene, *, scale: float = 10.0) -> torch.Tensor:
    """Normal noise; its standard deviation is `scale` times the root mean square of the honest updates' coordinates."""
    size = scene.honest.square().mean((-1, -2), keepdim=True).sqrt()
    return scale * size * _noise(scene)


def trained(scene: Scene) -> torch.Tensor:
    """The unchanged update of local training: the attack is in the poisoned data."""
    return _own(scene)


def model_replacement(scene: Scene, *, bound: float | None = None) -> torch.Tensor:
    """The trained update times n / f, so that it replaces the plain mean: Bagdasaryan et al. 2020 (arXiv 1807.00459).

    bound: clip the result to this multiple of the median honest norm, to pass a rule that limits norms.
    """
    boosted = scene.clients / scene.f * _own(scene)
    if bound is None:
        return boosted
    reach = bound * norms(scene.honest).median(-1, keepdim=True).values
    factor = (reach / norms(boosted).clamp_(min=torch.finfo(torch.float64).tiny)).clamp_(max=1)
    return boosted * factor.to(boosted.dtype).unsqueeze(-1)


def free_rider(scene: Scene, *, scale: float = 0.1) -> torch.Tensor:
    """The last aggregate plus noise of `scale` times its root mean square: Fraboni et al. 2021 (arXiv 2006.11901)."""
    old = torch.zeros_like(scene.honest[..., 0, :]) if scene.previous is None else scene.previous
    size = old.square().mean(-1, keepdim=True).sqrt().unsqueeze(-2)
    return scene.alike(old) + scale * size * _noise(scene)


def _own(scene: Scene) -> torch.Tensor:
    if scene.own is None:
        raise ConfigurationError("this adversary sends the update of its own training: give the scene `own` (f, d)")
    return scene.own


def _noise(scene: Scene) -> torch.Tensor:
    if scene.noise is None:
        raise ConfigurationError("this adversary sends noise: give the scene `noise`, (f, d) standard normal draws")
    return scene.noise.to(scene.honest.dtype)


def _farthest(scene: Scene, centre: torch.Tensor, candidates: Sequence[torch.Tensor]) -> torch.Tensor:
    """The candidate, out of Z of shape (..., d), that moves the aggregate farthest from `centre`; chosen per cell."""
    if scene.respond is None:
        raise ConfigurationError("a line search needs to know the rule: give the scene `respond`")
    stacked = torch.stack(list(candidates), -2)
    sent = stacked.unsqueeze(-2).expand(*stacked.shape[:-1], scene.f, stacked.shape[-1])
    distances = norms(scene.respond(sent) - centre.unsqueeze(-2))
    # An aggregate of NaN has broken the model completely, so it counts as the farthest.
    best = torch.nan_to_num(distances, nan=torch.inf).argmax(-1, keepdim=True).unsqueeze(-1)
    return scene.alike(stacked.gather(-2, best.expand(*stacked.shape[:-2], 1, stacked.shape[-1])).squeeze(-2))


LabelMap = Callable[[int], NDArray[np.int64]]
"""Maps the number of classes C to the labels (C,) with which byzantine clients train the rows of each class."""


def flipped(classes: int) -> NDArray[np.int64]:
    """y -> C - 1 - y.

    >>> flipped(3).tolist()
    [2, 1, 0]
    """
    return np.arange(classes)[::-1].copy()


def next_class(classes: int) -> NDArray[np.int64]:
    """y -> (y + 1) mod C.

    >>> next_class(3).tolist()
    [1, 2, 0]
    """
    return (np.arange(classes) + 1) % classes


@dataclass(frozen=True)
class Planting:
    """A share of every batch carries the trigger and the label `target`; needs cached features of triggered images."""

    target: int = 0
    share: float = 0.5


@dataclass(frozen=True)
class Adversary:
    """Clients that attack the model.

    craft     computes the updates they send
    labels    how they relabel their rows; None: labels stay correct
    backdoor  the trigger they train; None: no backdoor
    claim     number of examples they claim; None: the true number
    own, noise, search: whether craft needs the updates of their own training, noise, or the rule
    """

    craft: Craft
    labels: LabelMap | None = None
    backdoor: Planting | None = None
    claim: float | None = None
    own: bool = False
    noise: bool = False
    search: bool = False


ADVERSARIES: dict[str, Adversary] = {
    "sign_flip": Adversary(sign_flip),
    "ipm_0.1": Adversary(partial(inner_product_manipulation, eps=0.1)),
    "ipm_10": Adversary(partial(inner_product_manipulation, eps=10.0)),
    "ipm_search": Adversary(inner_product_search, search=True),
    "alie": Adversary(a_little_is_enough),
    "alie_search": Adversary(a_little_is_enough_search, search=True),
    "min_max": Adversary(min_max),
    "min_sum": Adversary(min_sum),
    "mimic": Adversary(mimic),
    "gaussian": Adversary(gaussian, noise=True),
    "label_flip": Adversary(trained, labels=flipped, own=True),
    "pair_flip": Adversary(trained, labels=next_class, own=True),
    "inflated_counts": Adversary(sign_flip, claim=1e9),
    "backdoor": Adversary(model_replacement, backdoor=Planting(), own=True),
    "backdoor_bounded": Adversary(partial(model_replacement, bound=1.0), backdoor=Planting(), own=True),
    "free_rider": Adversary(free_rider, noise=True),
}
"""Every adversary by the name that policies use."""
