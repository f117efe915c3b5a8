"""Recipes to be tried beside a candidate's own: what could make it leak less."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import ValidationError

from privacy_gate.documents import nearest
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, UndecidedError

Family = Literal["as-is", "epochs", "weight-decay", "label-smoothing", "drop", "dp-sgd"]

FAMILIES: tuple[Family, ...] = get_args(Family)[1:]
"""Kinds of alternatives; the recipe as it is always stands beside them."""

DECAYS = {"adam": (1e-3, 1e-2, 1e-1), "adamw": (0.1, 1.0, 10.0), "sgd": (1e-3, 1e-2, 1e-1)}
"""Weight decays tried. AdamW's shrinks weights by lr times itself a step, whatever the gradient, so it needs more."""

SMOOTHING = 0.1

SHARES = (0.01, 0.05)
"""Shares of the pool dropped, the most vulnerable rows first."""

NOT_TOLD = "the policy's program trains it and is not told such settings"

Private = Callable[[Recipe, float], Mapping[str, float]]
"""Settings of DP-SGD that give the recipe this epsilon; raises UndecidedError where its noise cannot be told."""


@dataclass(frozen=True)
class Alternative:
    """A recipe to be tried.

    name    a few words for tables and pictures
    share   of the pool, its most vulnerable rows, dropped before training
    reason  why it cannot be trained; empty where it can
    """

    family: Family
    name: str
    recipe: Recipe
    share: float = 0.0
    reason: str = ""


def families(only: Iterable[str], skip: Iterable[str]) -> list[Family]:
    """Those named by `only`, or all, without those of `skip`. Raises ConfigurationError for an unknown name."""
    only, skip = list(only), list(skip)
    for name in (*only, *skip):
        if name not in FAMILIES:
            raise ConfigurationError(f"no alternative is called '{name}'; {nearest(name, FAMILIES)}")
    return [family for family in FAMILIES if family in (only or FAMILIES) and family not in skip]


def alternatives(
    recipe: Recipe, families: Iterable[Family], epsilons: Iterable[float], private: Private
) -> list[Alternative]:
    """The recipe as it is, then every alternative of these families that differs from it."""
    wanted = set(families)
    found = [
        Alternative("as-is", "as it is", recipe),
        *_fewer_epochs(recipe),
        *_more_decay(recipe),
        *_smoother(recipe),
        *(Alternative("drop", f"drop {100 * share:g} %", recipe, share=share) for share in SHARES),
        *(_private(recipe, epsilon, private) for epsilon in dict.fromkeys(epsilons) if "dp-sgd" in wanted),
    ]
    kept = [option for option in found if option.family == "as-is" or option.family in wanted]
    if recipe.adaptation != "command":
        return kept
    return [option if option.recipe is recipe or option.reason else replace(option, reason=NOT_TOLD) for option in kept]


def _fewer_epochs(recipe: Recipe) -> list[Alternative]:
    """Half, a quarter, and one epoch."""
    counts = dict.fromkeys(max(1, count) for count in (recipe.epochs // 2, recipe.epochs // 4, 1))
    return [
        _changed("epochs", f"{count} epoch{'s' if count > 1 else ''}", recipe, epochs=count)
        for count in counts
        if count < recipe.epochs
    ]


def _more_decay(recipe: Recipe) -> list[Alternative]:
    """Weight decays above the recipe's own, as far as a step does not turn weights over."""
    optimizer, own = recipe.optimizer, recipe.optimizer.weight_decay
    # Adam divides the gradient, decay and all, by its own size: its steps stay short.
    pull = {"adam": 0.0, "adamw": optimizer.lr, "sgd": optimizer.lr / (1 - getattr(optimizer, "momentum", 0.0))}
    return [
        _changed(
            "weight-decay",
            f"decay {decay:g}",
            recipe,
            optimizer=optimizer.model_copy(update={"weight_decay": decay}),
        )
        for decay in DECAYS[optimizer.name]
        if decay > own and pull[optimizer.name] * decay < 1
    ]


def _smoother(recipe: Recipe) -> list[Alternative]:
    if recipe.label_smoothing >= SMOOTHING:
        return []
    return [_changed("label-smoothing", f"smoothing {SMOOTHING:g}", recipe, label_smoothing=SMOOTHING)]


def _private(recipe: Recipe, epsilon: float, private: Private) -> Alternative:
    name = f"DP-SGD ε {epsilon:g}"
    try:
        return _changed("dp-sgd", name, recipe, privacy=dict(private(recipe, epsilon)))
    except UndecidedError as error:
        return Alternative("dp-sgd", name, recipe, reason=str(error))


def _changed(family: Family, name: str, recipe: Recipe, **settings: object) -> Alternative:
    """The recipe with other settings, where recipes allow them together with all else it says."""
    try:
        return Alternative(family, name, type(recipe).model_validate({**dict(recipe), **settings}))
    except ValidationError as error:
        reason = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        return Alternative(family, name, recipe, reason=reason)
