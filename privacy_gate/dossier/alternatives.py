"""Alternatives to a candidate's recipe: changes that could make the model leak less."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import ValidationError

from privacy_gate.documents import nearest
from privacy_gate.dossier.recipe import Head, Recipe
from privacy_gate.errors import ConfigurationError, UndecidedError

Family = Literal["as-is", "release", "epochs", "weight-decay", "label-smoothing", "random-start", "drop", "dp-sgd"]

FAMILIES: tuple[Family, ...] = get_args(Family)[1:]
"""Kinds of alternatives. The unchanged recipe ("as-is") is always tried as well; "release" is that recipe's models,
of which less or more leaves the house, and trains nothing."""

DECAYS = {"adam": (1e-3, 1e-2, 1e-1), "adamw": (0.1, 1.0, 10.0), "sgd": (1e-3, 1e-2, 1e-1)}
"""Weight decays tried, by optimizer. AdamW shrinks weights by lr * decay in each step and does not scale the decay with
the gradient, so it needs larger values."""

SMOOTHING = 0.1

SHARES = (0.01, 0.05)
"""Shares of the pool that are dropped, most vulnerable rows first."""

NOT_PASSED_ON = "the policy's trainer trains it, and this setting is not passed to that program"

Private = Callable[[Recipe, float], Mapping[str, float]]
"""Returns DP-SGD settings that give the recipe this epsilon. Raises UndecidedError if no noise can be computed."""


@dataclass(frozen=True)
class Alternative:
    """A recipe to try.

    name    a short label for tables and plots
    share   share of the pool dropped before training, most vulnerable rows first
    reason  why it cannot be trained; empty if it can
    """

    family: Family
    name: str
    recipe: Recipe
    share: float = 0.0
    reason: str = ""


def families(only: Iterable[str], skip: Iterable[str]) -> list[Family]:
    """The families in `only` (empty: all), minus those in `skip`. Raises ConfigurationError for an unknown name."""
    only, skip = list(only), list(skip)
    for name in (*only, *skip):
        if name not in FAMILIES:
            raise ConfigurationError(f"no alternative is called '{name}'; {nearest(name, FAMILIES)}")
    return [family for family in FAMILIES if family in (only or FAMILIES) and family not in skip]


def alternatives(
    recipe: Recipe, families: Iterable[Family], epsilons: Iterable[float], private: Private
) -> list[Alternative]:
    """The unchanged recipe, then every alternative from these families that differs from it."""
    requested = set(families)
    options = [
        Alternative("as-is", "as it is", recipe),
        *_fewer_epochs(recipe),
        *_more_decay(recipe),
        *_smoother(recipe),
        *_random_start(recipe),
        *(Alternative("drop", f"drop {100 * share:g} %", recipe, share=share) for share in SHARES),
        # Only if requested, because the search for the noise is slow.
        *(_private(recipe, epsilon, private) for epsilon in dict.fromkeys(epsilons) if "dp-sgd" in requested),
    ]
    kept = [option for option in options if option.family == "as-is" or option.family in requested]
    if recipe.adaptation != "command":
        return kept
    # A trainer program is only told which rows to train on, so it can drop rows but not change other settings.
    return [
        option if option.recipe is recipe or option.reason else replace(option, reason=NOT_PASSED_ON) for option in kept
    ]


def _fewer_epochs(recipe: Recipe) -> list[Alternative]:
    """Half the epochs, a quarter of them, and one epoch."""
    # dict.fromkeys removes duplicates and keeps the order.
    counts = dict.fromkeys(max(1, count) for count in (recipe.epochs // 2, recipe.epochs // 4, 1))
    return [
        _changed("epochs", f"{count} epoch{'s' if count > 1 else ''}", recipe, epochs=count)
        for count in counts
        if count < recipe.epochs
    ]


def _more_decay(recipe: Recipe) -> list[Alternative]:
    """Weight decays above the recipe's own. A decay is skipped if one step of it would change the sign of a weight."""
    optimizer, current_decay = recipe.optimizer, recipe.optimizer.weight_decay
    # Share of a weight that one step removes, per unit of decay. Adam normalises the gradient with the decay in it, so
    # its step size is bounded and no decay is too large.
    pull = {"adam": 0.0, "adamw": optimizer.lr, "sgd": optimizer.lr / (1 - getattr(optimizer, "momentum", 0.0))}
    return [
        _changed(
            "weight-decay",
            f"decay {decay:g}",
            recipe,
            optimizer=optimizer.model_copy(update={"weight_decay": decay}),
        )
        for decay in DECAYS[optimizer.name]
        if decay > current_decay and pull[optimizer.name] * decay < 1
    ]


def _smoother(recipe: Recipe) -> list[Alternative]:
    if recipe.label_smoothing >= SMOOTHING:
        return []
    return [_changed("label-smoothing", f"smoothing {SMOOTHING:g}", recipe, label_smoothing=SMOOTHING)]


def _random_start(recipe: Recipe) -> list[Alternative]:
    """Random first weights hide the members' small contributions to the last ones."""
    if recipe.adaptation != "head" or recipe.head.initial != "zeros" or recipe.federation is not None:
        return []
    return [_changed("random-start", "random start", recipe, head=Head(initial="uniform"))]


def _private(recipe: Recipe, epsilon: float, private: Private) -> Alternative:
    # An epsilon that cannot be reached is listed with its reason and does not stop the others.
    name = f"DP-SGD ε {epsilon:g}"
    try:
        return _changed("dp-sgd", name, recipe, privacy=dict(private(recipe, epsilon)))
    except UndecidedError as error:
        return Alternative("dp-sgd", name, recipe, reason=str(error))


def _changed(family: Family, name: str, recipe: Recipe, **settings: object) -> Alternative:
    """The recipe with these settings changed, or the recipe with a reason if the new combination is not valid."""
    try:
        return Alternative(family, name, type(recipe).model_validate({**dict(recipe), **settings}))
    except ValidationError as error:
        reason = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        return Alternative(family, name, recipe, reason=reason)
