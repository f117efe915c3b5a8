"""The policy: its checks, limits and waivers, and the alias that approval moves."""

import datetime
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.release import Release
from privacy_gate.checks import AnyCheck
from privacy_gate.checks.base.references import keeps_of
from privacy_gate.checks.base.versus import Versus
from privacy_gate.checks.membership import Membership
from privacy_gate.documents import Record, load, nearest
from privacy_gate.dossier.recipe import Recipe, Trainer
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import Keeps
from privacy_gate.verdict.judgement import CheckResult, Finding, WaiverNote, judge

Text = Annotated[str, Field(min_length=1, max_length=500)]


class Waiver(Record):
    """Lets one model violate one limit until a date, on the responsibility of a named owner."""

    model: Text
    check: Text
    metric: Text
    owner: Text
    reason: Text
    expires: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]

    @model_validator(mode="after")
    def _date_exists(self) -> Self:
        try:
            datetime.date.fromisoformat(self.expires)
        except ValueError as error:
            raise ValueError(f"expires: {self.expires} is not a date; write YYYY-MM-DD") from error
        return self

    @property
    def note(self) -> WaiverNote:
        """The waiver as the report records it."""
        return WaiverNote(owner=self.owner, reason=self.reason, expires=self.expires)

    def covers(self, model: str, check: str, metric: str, today: datetime.date) -> bool:
        """Whether it excuses this limit of this model today; the day `expires` is still included."""
        same = (self.model, self.check, self.metric) == (model, check, metric)
        return same and today <= datetime.date.fromisoformat(self.expires)


class Promotion(Record):
    """The registry alias that moves to a version when it is approved."""

    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$")]

    @model_validator(mode="after")
    def _not_reserved(self) -> Self:
        # MLflow reserves `latest` and names such as v3: they stand for versions, not for aliases.
        if self.alias.lower() == "latest" or (self.alias[0] in "vV" and self.alias[1:].isdigit()):
            raise ValueError(f"alias '{self.alias}' is reserved by the registry: choose another alias")
        return self


class Policy(Record):
    """The requirements that a model must meet to be promoted.

    release     what whoever uses the model receives from it: declared by the operator, never inferred
    release_context  the same in older policies: api and internal mean all probabilities, open-weights the weights
    confidence       level of every two-sided interval
    trainer          the program that trains references; only recipes with adaptation `command` need it
    """

    name: Text
    version: Annotated[int, Field(ge=1)]
    release: Release | None = None
    release_context: Literal["internal", "api", "open-weights"] | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    checks: Annotated[tuple[AnyCheck, ...], Field(min_length=1)]
    promotion: Promotion | None = None
    trainer: Trainer | None = None
    waivers: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _checks_and_waivers_meet(self) -> Self:
        # A waiver with a typo would excuse nothing, which its owner would only notice when the model is blocked.
        names = [check.name for check in self.checks]
        for name in set(names):
            if names.count(name) > 1:
                raise ValueError(f"checks: '{name}' is listed twice: put all its limits into one entry")
        limits = {check.name: check.bounds for check in self.checks}
        for waiver in self.waivers:
            if waiver.check not in limits:
                raise ValueError(f"waivers: no check is called '{waiver.check}'; {nearest(waiver.check, limits)}")
            if waiver.metric not in limits[waiver.check]:
                limited = limits[waiver.check]
                raise ValueError(f"waivers: no limit on '{waiver.metric}'; {nearest(waiver.metric, limited)}")
        if self.compares and self.promotion is None:
            raise ValueError("checks: limits relative to the champion need its alias: add promotion: {alias: champion}")
        return self

    @model_validator(mode="after")
    def _release_is_said_once_and_can_be_attacked(self) -> Self:
        if (self.release is None) == (self.release_context is None):
            raise ValueError(
                "release: say once what leaves the house, for instance release: {outputs: probabilities, context: api}"
            )
        for check in self.checks:
            listed = check.attacks if isinstance(check, Membership) else None
            if listed is not None and not any(self.surface.shows(ATTACKS[name].view) for name in listed):
                raise ValueError(
                    f"checks: membership: no listed attack can use a release of {self.surface}: leave `attacks` out "
                    "to try the strongest ones, or list some of those that `privacy-gate attacks` shows for it"
                )
        return self

    @property
    def surface(self) -> Release:
        """What an attacker sees."""
        return self.release or Release.of_context(self.release_context or "api")

    def keeps(self, recipe: Recipe) -> Keeps:
        """What the policy's attacks need of the weights of a candidate of this recipe, and of its references."""
        names = (name for check in self.checks for name in check.attacks_tried(self.surface, recipe))
        return keeps_of(recipe, self.surface, names)

    @property
    def compares(self) -> bool:
        """Whether a limit is relative to the champion, the version at the promotion alias."""
        return any(isinstance(check, Versus) and check.compares for check in self.checks)

    def judge(self, model: str, check: AnyCheck, result: CheckResult, today: datetime.date) -> list[Finding]:
        """A finding for each measurement of a metric that the check limits.

        If the check returned nothing for a limit, the finding is "not measured": it is never skipped silently.
        """
        findings = []
        for measurement in result.complete(check.bounds).measurements:
            if (limit := check.bounds.get(measurement.metric)) is None:
                continue
            waiver = next((w for w in self.waivers if w.covers(model, check.name, measurement.metric, today)), None)
            findings.append(judge(check.name, measurement, limit, waiver.note if waiver else None))
        return findings

    def idle_waivers(self, model: str, findings: Iterable[Finding], today: datetime.date) -> list[str]:
        """One line for each waiver of this model that excused no violation, or has expired."""
        # Waivers that do nothing any more are named, so that they do not stay in the policy for ever.
        used = {(finding.check, finding.measurement.metric) for finding in findings if finding.waiver}
        return [
            f"waiver of {waiver.check} {waiver.metric} by {waiver.owner} "
            + ("has expired" if datetime.date.fromisoformat(waiver.expires) < today else "excused nothing: remove it")
            for waiver in self.waivers
            if waiver.model == model and (waiver.check, waiver.metric) not in used
        ]


@dataclass(frozen=True)
class PolicyInForce:
    """The policy that judges a candidate, with the evidence that it was fixed before the results.

    sha256    of the policy file's bytes
    source    the path of the policy file
    recorded  when that sha256 was first recorded for this candidate, before anything was measured, as ISO 8601 text
    """

    policy: Policy
    sha256: str
    source: str
    recorded: str


def load_policy(path: Path) -> tuple[Policy, str]:
    """The policy in the file and the sha256 of its bytes.

    Raises ConfigurationError, with file:line:col for a fault in the text.
    """
    try:
        # Bytes, not text: the sha256 must be the one that sha256sum prints for the file.
        payload = path.read_bytes()
        text = payload.decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name a policy file with --policy") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text; save the policy as UTF-8") from error
    return load(text, Policy, str(path)), hashlib.sha256(payload).hexdigest()
