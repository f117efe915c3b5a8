"""The rules that a study of hostile clients tries, and the federations that it trains with each of them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from privacy_gate.checks.base.federations import Federations
from privacy_gate.dossier.federation import Aggregator
from privacy_gate.jobs.kinds import Federate

ROBUST = (
    Aggregator(name="median"),
    Aggregator(name="trimmed_mean"),
    Aggregator(name="geometric_median"),
    Aggregator(name="multi_krum"),
    Aggregator(name="centered_clipping"),
    Aggregator(name="trimmed_mean", before=("nnm",)),
)
"""Rules that might do better than the recipe's. `tolerates` is set to the number of clients that attack."""

HEEDFUL = ("trimmed_mean", "krum", "multi_krum", "bulyan", "minimum_diameter", "meamed", "nnm", "arc")
"""Rules, and steps before them, whose result depends on `tolerates`."""


@dataclass(frozen=True)
class Study:
    """The attacks and the rules that a check tries.

    attacks       their names
    byzantine     clients that attack, a minority
    alternatives  whether rules other than the recipe's are tried
    """

    federations: Federations
    attacks: tuple[str, ...]
    byzantine: int
    alternatives: bool

    @property
    def own(self) -> Aggregator:
        """The recipe's rule."""
        return self.federations.federation.aggregator

    def rules(self) -> list[Aggregator]:
        """The recipe's own rule, and the alternatives that can be tried, which tolerate all clients that attack."""
        return [self.own, *(rule for rule in self._others() if not self.unmet(rule, self.byzantine))]

    def left_out(self) -> list[str]:
        """A note for each reason why alternatives cannot be tried."""
        by_reason: dict[str, list[str]] = {}
        for rule in self._others():
            if reason := self.unmet(rule) or self.unmet(rule, self.byzantine):
                by_reason.setdefault(reason, []).append(self.label(rule))
        return [f"robustness: {', '.join(names)} not tried: {reason}" for reason, names in by_reason.items()]

    def _others(self) -> list[Aggregator]:
        """Empty under secure aggregation: each of these rules looks at single updates."""
        if not self.alternatives or self.federations.federation.secure_aggregation:
            return []
        # The recipe's own rule is an alternative too if it would do something else with a higher `tolerates`.
        heeds = any(name in HEEDFUL for name in (self.own.name, *self.own.before))
        others = [self.own] * heeds + [rule for rule in ROBUST if str(rule) != str(self.own)]
        tolerant = [rule.model_copy(update={"tolerates": self.byzantine}) for rule in others]
        return [rule for rule in tolerant if rule != self.own]

    def unmet(self, rule: Aggregator, byzantine: int = 0) -> str | None:
        """The reason why the rule cannot be tried with so many attackers, in some attack; None if it can."""
        attacks = [(name, byzantine) for name in self.attacks] if byzantine else [None]
        return next(filter(None, (self.federations.unmet(rule, attack) for attack in attacks)), None)

    def unplantable(self, adversaries: Iterable[str]) -> str | None:
        """The reason why these backdoors cannot be planted; None if they can."""
        reasons = (self.federations.unmet(None, (name, self.byzantine)) for name in adversaries)
        return next(filter(None, reasons), None)

    def label(self, rule: Aggregator) -> str:
        """The rule's name in tables and plots. If the recipe's own rule appears twice, one has its `tolerates`."""
        same = rule == self.own or str(rule) != str(self.own)
        return str(rule) if same else f"{rule} with tolerates: {rule.tolerates}"

    def numbers(self, rule: Aggregator) -> range:
        """Numbers of attackers: any minority for the recipe's rule, up to `byzantine` for the others."""
        most = (self.federations.count - 1) // 2 if rule == self.own else self.byzantine
        return range(1, most + 1)

    def tried(self, rule: Aggregator) -> list[int]:
        """Those of these numbers with which every attack can be tried."""
        return [byzantine for byzantine in self.numbers(rule) if not self.unmet(rule, byzantine)]

    def clean(self, rule: Aggregator) -> list[Federate]:
        """Federations without an attack, by seed."""
        return self.federations.jobs(rule)

    def attacked(self, rule: Aggregator, byzantine: int) -> dict[str, list[Federate]]:
        """Federations under attack by so many clients, by attack and seed."""
        return {name: self.federations.jobs(rule, (name, byzantine)) for name in self.attacks}

    def planted(self, adversaries: Collection[str]) -> dict[str, list[Federate]]:
        """Federations with the recipe's rule in which backdoors are planted, by adversary and seed."""
        return {name: self.federations.jobs(None, (name, self.byzantine)) for name in adversaries}
