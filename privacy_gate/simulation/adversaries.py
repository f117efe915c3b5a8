"""What byzantine clients send, knowing everything: the updates of all others, the rule, and the last aggregate.

To add one, write a function here and a line in ADVERSARIES: the tests of the family run over it. Axis letters: h
honest updates, f byzantine ones, d coordinates. Attacks speak of updates, never of weights.
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
"""Factors that inner-product manipulation tries."""

ALIE_SEARCH = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0)
"""Standard deviations that "a little is enough" tries."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What the f colluding clients see in a round.

    honest    (..., h, d)  what the others send
    f         how many they are
    own       (..., f, d)  what local training gave them, on data they may have poisoned
    previous  (..., d)     the last aggregate; None in the first round
    noise     (f, d) or (..., f, d), standard normal, for those who need it
    respond   from Z ways to attack (..., Z, f, d) to what the server would make of each, (..., Z, d)
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
        """The same update (..., d) from each of the f: (..., f, d)."""
        return update.unsqueeze(-2).expand(*update.shape[:-1], self.f, update.shape[-1])


Craft = Callable[[Scene], torch.Tensor]
"""From what they see to what they send, (..., f, d), of the dtype of the honest updates."""


def sign_flip(scene: Scene) -> torch.Tensor:
    """- mu, mu the mean of the honest updates."""
    return scene.alike(-scene.honest.mean(-2))


def inner_product_manipulation(scene: Scene, *, eps: float) -> torch.Tensor:
    """- eps mu: Xie et al. 2020 (arXiv 1903.03936)."""
    return scene.alike(-eps * scene.honest.mean(-2))


def inner_product_search(scene: Scene, *, factors: Sequence[float] = IPM_SEARCH) -> torch.Tensor:
    """- eps mu with the eps that moves the aggregate farthest from mu."""
    centre = scene.honest.mean(-2)
    return _farthest(scene, centre, [-eps * centre for eps in factors])


def alie_z(n: int, f: int) -> float:
    """Phi^-1((n - f - s) / (n - f)), s = floor(n / 2 + 1) - f: Baruch et al. 2019 (arXiv 1902.06156).

    Deviations that a majority of clients hides: the byzantine need s honest ones beyond them. A minority can always
    attack so; raises ConfigurationError where they are none, or half of all.

    >>> round(alie_z(50, 8), 4), alie_z(10, 2)
    (0.18, 0.0)
    """
    if reason := unmet_by_attack("alie", n, f):
        raise ConfigurationError(reason)
    supporters = n // 2 + 1 - f
    return float(ndtri((n - f - supporters) / (n - f)))


def a_little_is_enough(scene: Scene, *, z: float | None = None) -> torch.Tensor:
    """mu - z s, s the standard deviation (ddof 1) of each coordinate; z as `alie_z` where None."""
    factor = alie_z(scene.clients, scene.f) if z is None else z
    centre, spread = moments(scene.honest)
    return scene.alike(centre - factor * spread)


def a_little_is_enough_search(scene: Scene, *, factors: Sequence[float] = ALIE_SEARCH) -> torch.Tensor:
    """mu - z s with the z that moves the aggregate farthest from mu."""
    centre, spread = moments(scene.honest)
    return _farthest(scene, centre, [centre - z * spread for z in factors])


def min_max(scene: Scene) -> torch.Tensor:
    """mu - g s, g the largest with max_i |m - u_i|^2 <= max_ij |u_i - u_j|^2: Shejwalkar & Houmansadr 2021.

    In closed form: g is the smallest of the positive roots of one quadratic for each honest client.
    """
    centre, spread = moments(scene.honest)
    away = centre.unsqueeze(-2) - scene.honest
    room = squared_distances(scene.honest).amax((-1, -2)).unsqueeze(-1) - norms(away) ** 2
    along = (away @ spread.unsqueeze(-1)).squeeze(-1).double()
    square = (norms(spread) ** 2).unsqueeze(-1).clamp_(min=torch.finfo(torch.float64).tiny)
    root = (along + (along**2 + square * room.clamp_(min=0)).sqrt()) / square
    return scene.alike(centre - root.amin(-1, keepdim=True).to(spread.dtype) * spread)


def min_sum(scene: Scene) -> torch.Tensor:
    """mu - g s, g the largest with sum_i |m - u_i|^2 <= max_i sum_j |u_i - u_j|^2: Shejwalkar & Houmansadr 2021."""
    centre, spread = moments(scene.honest)
    away = norms(centre.unsqueeze(-2) - scene.honest)
    room = squared_distances(scene.honest).sum(-1).amax(-1) - (away**2).sum(-1)
    square = (norms(spread) ** 2).clamp_(min=torch.finfo(torch.float64).tiny) * scene.honest.shape[-2]
    factor = (room.clamp_(min=0) / square).sqrt().unsqueeze(-1)
    return scene.alike(centre - factor.to(spread.dtype) * spread)


def mimic(scene: Scene, *, client: int = 0) -> torch.Tensor:
    """What honest client `client` sends: Karimireddy et al. 2022 (arXiv 2006.09365). Over-weights its data."""
    return scene.alike(scene.honest[..., client, :])


def gaussian(scene: Scene, *, scale: float = 10.0) -> torch.Tensor:
    """Noise, each coordinate `scale` times the root mean square of the honest updates' coordinates."""
    size = scene.honest.square().mean((-1, -2), keepdim=True).sqrt()
    return scale * size * _noise(scene)


def trained(scene: Scene) -> torch.Tensor:
    """What local training gave: the attack is in the data."""
    return _own(scene)


def model_replacement(scene: Scene, *, bound: float | None = None) -> torch.Tensor:
    """n / f times what training gave, so that the plain mean becomes it: Bagdasaryan et al. 2020 (arXiv 1807.00459).

    bound: no longer than so many times the median honest norm, to pass a limit on norms.
    """
    grown = scene.clients / scene.f * _own(scene)
    if bound is None:
        return grown
    reach = bound * norms(scene.honest).median(-1, keepdim=True).values
    factor = (reach / norms(grown).clamp_(min=torch.finfo(torch.float64).tiny)).clamp_(max=1)
    return grown * factor.to(grown.dtype).unsqueeze(-1)


def free_rider(scene: Scene, *, scale: float = 0.1) -> torch.Tensor:
    """The last aggregate and a little noise, relative to its own size: Fraboni et al. 2021 (arXiv 2006.11901)."""
    old = torch.zeros_like(scene.honest[..., 0, :]) if scene.previous is None else scene.previous
    size = old.square().mean(-1, keepdim=True).sqrt().unsqueeze(-2)
    return scene.alike(old) + scale * size * _noise(scene)


def _own(scene: Scene) -> torch.Tensor:
    if scene.own is None:
        raise ConfigurationError("this adversary sends what its own training gave, and the scene has none")
    return scene.own


def _noise(scene: Scene) -> torch.Tensor:
    if scene.noise is None:
        raise ConfigurationError("this adversary sends noise, and the scene has none: draw (f, d) standard normals")
    return scene.noise.to(scene.honest.dtype)


def _farthest(scene: Scene, centre: torch.Tensor, candidates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of Z candidates (..., d), cell by cell the one after which the aggregate is farthest from `centre`."""
    if scene.respond is None:
        raise ConfigurationError("a line search needs to know the rule, and the scene has none")
    tried = torch.stack(list(candidates), -2)
    sent = tried.unsqueeze(-2).expand(*tried.shape[:-1], scene.f, tried.shape[-1])
    moved = norms(scene.respond(sent) - centre.unsqueeze(-2))
    best = torch.nan_to_num(moved, nan=torch.inf).argmax(-1, keepdim=True).unsqueeze(-1)
    return scene.alike(tried.gather(-2, best.expand(*tried.shape[:-2], 1, tried.shape[-1])).squeeze(-2))


LabelMap = Callable[[int], NDArray[np.int64]]
"""From the number of classes C to the label (C,) that byzantine clients train each class with."""


def flipped(classes: int) -> NDArray[np.int64]:
    """y -> C - 1 - y.

    >>> flipped(3).tolist()
    [2, 1, 0]
    """
    return np.arange(classes)[::-1].copy()


def next_class(classes: int) -> NDArray[np.int64]:
    """y -> y + 1, the last to 0.

    >>> next_class(3).tolist()
    [1, 2, 0]
    """
    return (np.arange(classes) + 1) % classes


@dataclass(frozen=True)
class Planting:
    """A share of every batch shows the trigger and is trained as `target`; cached features of it are needed."""

    target: int = 0
    share: float = 0.5


@dataclass(frozen=True)
class Adversary:
    """Clients that want the model to fail.

    craft   what they send
    labels  what they train each class as, where they poison labels
    backdoor the trigger they train, where they do
    claim   how many examples they say they have; None: the truth
    own, noise, search: whether craft needs what their own training gave, noise, or the rule
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
