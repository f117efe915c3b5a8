"""How much noise DP-SGD needs for a given epsilon, and what noise spends: Opacus' accountant, where it is installed."""

from privacy_gate.compute.training.private import sampling_rate, steps_of
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.federation.attendance import Attendance
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import UndecidedError

CLIP = 1.0
"""Norm to which each example's gradient is cut."""

LEAST_EPSILON = 0.01
"""Below this a model learns nothing from data of any size that is audited here, and the search for noise is long."""


def private_settings(recipe: Recipe, epsilon: float, rows: int) -> dict[str, float]:
    """DP-SGD's noise_multiplier, clip and delta that make training on `rows` examples (epsilon, delta)-private.

    delta = min(1e-5, 1/(10 rows)). Examples are added or removed; every step takes each of them with probability
    batch_size / rows; Renyi accountant. Raises UndecidedError where Opacus is missing or no noise reaches epsilon.
    """
    delta = min(1e-5, 0.1 / rows)
    noise = noise_multiplier(epsilon, delta, sampling_rate(rows, recipe.batch_size), steps_in_all(recipe, rows))
    return {"noise_multiplier": noise, "clip": CLIP, "delta": delta}


def spent_epsilon(recipe: Recipe, rows: int) -> float | None:
    """Epsilon of the recipe's own DP-SGD on `rows` examples, by Opacus' Renyi accountant.

    None for a recipe without it, without noise, or where Opacus is not installed.
    """
    privacy = recipe.privacy
    if privacy is None:
        return None
    rate, steps = sampling_rate(rows, recipe.batch_size), steps_in_all(recipe, rows)
    return _spent(privacy.noise_multiplier, rate, steps, privacy.delta)


def spent_on_clients(federation: Federation, clients: int) -> float | None:
    """Epsilon of the privacy of so many clients in the federation, likewise: every round is a step.

    The accountant lets each client into a round by itself, with as probability the share of the clients that a round
    asks; the federation asks a fixed number of them, as is usual. None as above.
    """
    privacy = federation.privacy
    if privacy is None:
        return None
    asked = sum(Attendance(clients, federation.participation).asked(0))
    return _spent(privacy.noise_multiplier, asked / clients, federation.rounds, privacy.delta)


def _spent(noise: float, rate: float, steps: int, delta: float) -> float | None:
    if noise == 0:
        return None
    try:
        from opacus.accountants import RDPAccountant  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        return None
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta))


def steps_in_all(recipe: Recipe, rows: int) -> int:
    """Batches that training on `rows` examples takes."""
    return recipe.epochs * steps_of(rows, recipe.batch_size)


def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Standard deviation of the noise in units of the clip, for `steps` of Poisson sampling at `rate`.

    Raises UndecidedError where Opacus is not installed or finds none.
    """
    if epsilon < LEAST_EPSILON:
        raise UndecidedError(f"epsilon {epsilon:g} is below {LEAST_EPSILON}: name a larger one")
    try:
        # Optional, and slow to import.
        from opacus.accountants.utils import get_noise_multiplier  # noqa: PLC0415
    except ImportError as error:
        raise UndecidedError("Opacus is not installed: pip install 'privacy-gate[dp]'") from error
    try:
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
            )
        )
    except ValueError as error:
        raise UndecidedError(f"no noise reaches epsilon {epsilon:g}: {error}") from error
