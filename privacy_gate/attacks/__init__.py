"""Attacks: membership evidence in, (N,) scores out; larger = more likely a member.

To add one, write a function in a file here and a line in ATTACKS: the tests of the family run over it.
"""

from functools import partial
from typing import Any

from privacy_gate.attacks.attack import Attack
from privacy_gate.attacks.entropy import entropy
from privacy_gate.attacks.gradient import gradient_norm, not_converged, self_influence
from privacy_gate.attacks.labels import consistency, gap, label_lira
from privacy_gate.attacks.lira import lira_offline, lira_online
from privacy_gate.attacks.loss import attack_p, attack_r, loss, loss_trace
from privacy_gate.attacks.quantile import quantile
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.rmia import base, informia, rmia_offline, rmia_online
from privacy_gate.attacks.weights import (
    Statistic,
    alone,
    hessian_statistic,
    influence_statistic,
    over_references,
    plain_span_statistic,
    span_statistic,
    with_confidence,
)

_per_example = partial(lira_online, variance="per_example")
_pooled = partial(lira_online, variance="pooled")
_bavaria = partial(lira_online, variance="bavaria")

_GAUSSIAN = "references are trained as the candidate was; phi is Gaussian over retrainings"
_T = "references are trained as the candidate was; rows' variances come from one family"
_RATIO = "references are trained as the candidate was; p matters as a ratio"
_ALONE = "members have smaller losses, whatever the example"
_LINEAR = "what a model says of a row it never saw is normal, linear in its features"
_FITTED = "members are fitted, so leaving one out changes little"
_FALLS = "training moves members' losses further"
_SUM = "weights moved by a sum of the members' gradients"
_ALIKE = "references are trained as the candidate was, and their weights move alike"
_LABELS = "members' labels are right more often"
_STEADY = "members' labels stay right under changes of the image"
_FREE = "nothing"
_SOLVE = "one linear system in the audited rows or the features, seconds"
_HESSIAN = "one Hessian's inverse, seconds"
_SHARED = "training the references, once for all attacks"

_LIRA = "Carlini et al. 2022, arXiv 2112.03570"
_RMIA = "Zarifzadeh et al. 2024, arXiv 2312.03262"
_YE = "Ye et al. 2022, arXiv 2111.09679"
_QUANTILE = "Bertran et al. 2023, arXiv 2307.03694"
_NASR = "Nasr et al. 2019, arXiv 1812.00910; closed form"
_INFLUENCE = "Cohen & Giryes 2022, arXiv 2205.13680; Newton step"
_SONG = "Song & Mittal 2021, arXiv 2003.10595"
_SPAN = "whitened gradient span: docs/benchmarks.md"
_IHA = "Suri et al. 2024, arXiv 2406.11544"
_GLIR = "Leemann et al. 2023, arXiv 2306.07273"
_OVER = "BaVarIA, arXiv 2603.11799"
_OWN = "influence on the row's own class"
_CHOQUETTE = "Choquette-Choo et al. 2021, arXiv 2007.14321"

_WEIGHTS: dict[str, Any] = {"view": "probabilities", "weights": True}
_HEADS: dict[str, Any] = {**_WEIGHTS, "features": True}
_ONLINE: dict[str, Any] = {"references": 4, "inside": 2}
_MANY: dict[str, Any] = {"references": 8, "inside": 2}


def _alone(name: str, statistic: Statistic, source: str, needs: dict[str, Any]) -> Attack:
    return Attack(name, alone(statistic), source, _SUM, _SOLVE, **needs)


def _over(name: str, statistic: Statistic, source: str, needs: dict[str, Any]) -> Attack:
    return Attack(f"{name}_lira", over_references(statistic), f"{source}; {_OVER}", _ALIKE, _SHARED, **_ONLINE, **needs)


# fmt: off
_ALL = (
    Attack("span_joint", with_confidence(span_statistic), f"{_SPAN}, with phi; {_OVER}", _ALIKE, _SHARED,
           **_ONLINE, **_WEIGHTS),
    _over("span", span_statistic, _SPAN, _WEIGHTS),
    _alone("span", span_statistic, _SPAN, _WEIGHTS),
    _over("influence", influence_statistic, _OWN, _HEADS),
    _alone("influence", influence_statistic, _OWN, _HEADS),
    _over("inverse_hessian", hessian_statistic, _IHA, _HEADS),
    _alone("inverse_hessian", hessian_statistic, _IHA, _HEADS),
    _over("glir", plain_span_statistic, _GLIR, _HEADS),
    _alone("glir", plain_span_statistic, _GLIR, _HEADS),
    Attack("lira", lira_online, _LIRA, _GAUSSIAN, _SHARED, **_MANY),
    Attack("lira_per_example", _per_example, f"{_LIRA}, a row's own", _GAUSSIAN, _SHARED, **_MANY),
    Attack("lira_pooled", _pooled, f"{_LIRA}, one variance", _GAUSSIAN, _SHARED, **_MANY),
    Attack("lira_offline", lira_offline, f"{_LIRA}, offline", _GAUSSIAN, _SHARED, references=8),
    Attack("bavaria", _bavaria, _OVER, _T, _SHARED, **_ONLINE),
    Attack("rmia", rmia_online, _RMIA, _RATIO, _SHARED, references=2, population=100),
    Attack("rmia_offline", rmia_offline, f"{_RMIA}, offline", _RATIO, _SHARED, references=2, population=100),
    Attack("base", base, "BASE, arXiv 2505.24089", _RATIO, _SHARED, references=2),
    Attack("informia", informia, "InfoRMIA, 2026", _RATIO, _SHARED, references=2, population=100),
    Attack("attack_r", attack_r, f"{_YE}, Attack R", _GAUSSIAN, _SHARED, references=8),
    Attack("quantile", quantile, _QUANTILE, _LINEAR, _FREE, view="probabilities", pool=False, population=200,
           features=True),
    Attack("attack_p", attack_p, f"{_YE}, Attack P", _ALONE, _FREE, pool=False, population=100),
    Attack("entropy", entropy, _SONG, "one threshold for each class", "one reference", view="probabilities",
           reference_logits=True),
    Attack("gradient_norm", gradient_norm, _NASR, _ALONE, _FREE, view="probabilities", pool=False, features=True),
    Attack("self_influence", self_influence, _INFLUENCE, _FITTED, _HESSIAN, view="probabilities", features=True,
           refuse=not_converged),
    Attack("loss_trace", loss_trace, "Pollock et al. 2024, arXiv 2411.05743", _FALLS, _FREE, pool=False, trace=True),
    Attack("loss", loss, "Yeom et al. 2018, arXiv 1709.01604", _ALONE, _FREE, pool=False),
    Attack("consistency", consistency, _CHOQUETTE, _STEADY, _SHARED, view="label", references=8, steady=True),
    Attack("label_lira", label_lira, f"{_LIRA}, of one label", _LABELS, _SHARED, view="label", **_MANY),
    Attack("gap", gap, "Yeom et al. 2018, arXiv 1709.01604", _LABELS, _FREE, view="label", pool=False),
)
# fmt: on

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ALL}
"""Every attack by the name that policies use; strongest first."""


def strongest(release: Release, adaptation: str) -> tuple[str, ...]:
    """The attacks that policies ask for by default: the strongest that the release allows, by measurement.

    See the table of attacks in docs/benchmarks.md. Heads are recovered from full probabilities; of networks only their
    weights reveal more than their confidences.
    """
    if release.outputs == "label":
        return ("consistency", "label_lira", "gap") if adaptation == "head" else ("label_lira", "gap")
    black_box = ("lira", "bavaria", "rmia", "loss")
    if release.outputs == "top_k":
        return (*black_box, "label_lira")
    if release.shows("weights") or adaptation == "head":
        of_heads = ("glir_lira",) if adaptation == "head" else ()
        return ("span_joint", "span_lira", *of_heads, "span", *black_box)
    return black_box
