"""Attacks: membership evidence in, (N,) scores out; larger = more likely a member.

To add one, write a function in a file here and a line in ATTACKS: the tests of the family run over it.
"""

from functools import partial

from privacy_gate.attacks.attack import Attack
from privacy_gate.attacks.entropy import entropy
from privacy_gate.attacks.gradient import gradient_norm, not_converged, self_influence
from privacy_gate.attacks.lira import lira_offline, lira_online
from privacy_gate.attacks.loss import attack_p, attack_r, loss
from privacy_gate.attacks.quantile import quantile
from privacy_gate.attacks.rmia import base, informia, rmia_offline, rmia_online
from privacy_gate.attacks.trace import loss_trace

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
_FREE = "nothing"
_HESSIAN = "one Hessian's inverse, seconds"
_SHARED = "training the references, once for all attacks"

_LIRA = "Carlini et al. 2022, arXiv 2112.03570"
_RMIA = "Zarifzadeh et al. 2024, arXiv 2312.03262"
_YE = "Ye et al. 2022, arXiv 2111.09679"
_QUANTILE = "Bertran et al. 2023, arXiv 2307.03694"
_NASR = "Nasr et al. 2019, arXiv 1812.00910; closed form"
_INFLUENCE = "Cohen & Giryes 2022, arXiv 2205.13680; Newton step"
_SONG = "Song & Mittal 2021, arXiv 2003.10595"

# fmt: off
_ALL = (
    Attack("lira", lira_online, _LIRA, _GAUSSIAN, _SHARED, references=8, inside=2),
    Attack("lira_per_example", _per_example, f"{_LIRA}, a row's own", _GAUSSIAN, _SHARED, references=8, inside=2),
    Attack("lira_pooled", _pooled, f"{_LIRA}, one variance", _GAUSSIAN, _SHARED, references=8, inside=2),
    Attack("lira_offline", lira_offline, f"{_LIRA}, offline", _GAUSSIAN, _SHARED, references=8),
    Attack("bavaria", _bavaria, "BaVarIA, arXiv 2603.11799", _T, _SHARED, references=4, inside=2),
    Attack("rmia", rmia_online, _RMIA, _RATIO, _SHARED, references=2, population=100),
    Attack("rmia_offline", rmia_offline, f"{_RMIA}, offline", _RATIO, _SHARED, references=2, population=100),
    Attack("base", base, "BASE, arXiv 2505.24089", _RATIO, _SHARED, references=2),
    Attack("informia", informia, "InfoRMIA, 2026", _RATIO, _SHARED, references=2, population=100),
    Attack("attack_r", attack_r, f"{_YE}, Attack R", _GAUSSIAN, _SHARED, references=8),
    Attack("quantile", quantile, _QUANTILE, _LINEAR, _FREE, population=200, features=True),
    Attack("attack_p", attack_p, f"{_YE}, Attack P", _ALONE, _FREE, population=100),
    Attack("entropy", entropy, _SONG, "one threshold for each class", "one reference", reference_logits=True),
    Attack("gradient_norm", gradient_norm, _NASR, _ALONE, _FREE, features=True),
    Attack("self_influence", self_influence, _INFLUENCE, _FITTED, _HESSIAN, features=True, refuse=not_converged),
    Attack("loss_trace", loss_trace, "Pollock et al. 2024, arXiv 2411.05743", _FALLS, _FREE, trace=True),
    Attack("loss", loss, "Yeom et al. 2018, arXiv 1709.01604", _ALONE, _FREE),
)
# fmt: on

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ALL}
"""Every attack by the name that policies use; strongest first."""
