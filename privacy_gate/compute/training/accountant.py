"""Privacy accounting with Opacus, if it is installed: the noise for a given epsilon, and the epsilon of given noise."""

from privacy_gate.compute.training.private import sampling_rate, steps_of
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.federation.attendance import Attendance
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import UndecidedError

CLIP = 1.0
"""Norm to which each example's gradient is clipped."""

LEAST_EPSILON = 0.01
"""Smallest accepted epsilon: below it a model learns nothing from data of auditable size, and the search is slow."""


def private_settings(recipe: Recipe, epsilon: float, rows: int) -> dict[str, float]:
    """DP-SGD's noise_multiplier, clip and delta that make training on `rows` examples (epsilon, delta)-private.

    delta = min(1e-5, 1/(10 rows)). Neighbouring data sets differ by adding or removing one example; every step samples
    each example with probability batch_size / rows; Renyi accountant. Raises UndecidedError if Opacus is missing or no
    noise reaches epsilon.
    """
    delta = min(1e-5, 0.1 / rows)
    noise = noise_multiplier(epsilon, delta, sampling_rate(rows, recipe.batch_size), steps_in_all(recipe, rows))
    return {"noise_multiplier": noise, "clip": CLIP, "delta": delta}


def spent_epsilon(recipe: Recipe, rows: int) -> float | None:
    """Epsilon of the recipe's own DP-SGD on `rows` examples, by Opacus' Renyi accountant.

    None if the recipe has no DP-SGD, its noise is 0, or Opacus is not installed.
    """
    privacy = recipe.privacy
    if privacy is None:
        return None
    rate, steps = sampling_rate(rows, recipe.batch_size), steps_in_all(recipe, rows)
    return _spent(privacy.noise_multiplier, rate, steps, privacy.delta)


def spent_on_clients(federation: Federation, clients: int) -> float | None:
    """Epsilon of client-level privacy in a federation with this many clients; every round is a step.

    The accountant assumes that each client joins a round independently, with probability asked / clients; the
    federation asks a fixed number of them, as is usual. None if there is no privacy, its noise is 0, or Opacus is not
    installed.
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
    """Total number of steps of training on `rows` examples."""
    return recipe.epochs * steps_of(rows, recipe.batch_size)


def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Standard deviation of the noise in units of the clip, for `steps` of Poisson sampling at `rate`.

    Raises UndecidedError if Opacus is not installed or finds no such noise.
    """
    if epsilon < LEAST_EPSILON:
        raise UndecidedError(f"epsilon {epsilon:g} is below {LEAST_EPSILON}: name a larger one")
    try:
        # Imported here because Opacus is optional, and slow to import.
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
        raise UndecidedError(f"no noise reaches epsilon {epsilon:g}: {error}; name a larger one") from error
