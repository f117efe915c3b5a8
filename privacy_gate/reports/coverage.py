"""What was tested and what was not, in the terms of public taxonomies, and the texts that ask for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from privacy_gate.checks import CHECKS
from privacy_gate.documents import Record
from privacy_gate.reports.words import capital, check_title, plain
from privacy_gate.verdict.report import CheckRecord, Report

MOST = 16
"""Subjects of a check that a line names, at most."""


class Reference(Record):
    """A text that asks for evidence, what it asks in short, and where a report has it."""

    reference: str
    asks: str
    found: str


class AttackClass(Record):
    """A class of attacks in public taxonomies. Checks name the one that they test.

    words  how lists of what was not tested speak of it
    """

    name: str
    nist: tuple[str, ...] = ()
    atlas: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


class References(Record):
    """The data file that maps reports to public texts; `as_of` is when the texts were read."""

    as_of: str
    texts: tuple[Reference, ...]
    attacks: tuple[AttackClass, ...]


@cache
def references() -> References:
    """The mapping that the package brings."""
    text = resources.files("privacy_gate.reports").joinpath("references.json").read_text(encoding="utf-8")
    return References.model_validate_json(text)


@dataclass(frozen=True)
class Coverage:
    """One line of what was and was not tested, with its taxonomy ids."""

    what: str
    outcome: str
    tested: bool
    ids: str


def coverage(report: Report) -> list[Coverage]:
    """What was tested, by which checks; then what was not, as the report lists it. Both with taxonomy ids."""
    known = references().attacks
    lines = []
    for attacks in known:
        checks = [check for check in report.checks if _attacks(check) == attacks.name]
        lines.append(_tested(capital(attacks.name), checks, _ids([attacks])))
    mapped = {attacks.name for attacks in known}
    others = [check for check in report.checks if _attacks(check) not in mapped]
    lines += [_tested(check_title(check.check), [check], "", attacks=False) for check in others]
    for line in report.not_tested:
        named = [attacks for attacks in known if any(word in line.lower() for word in attacks.words)]
        lines.append(Coverage(capital(plain(line)), "not tested", False, _ids(named)))
    return [line for line in lines if line.outcome]


def _attacks(check: CheckRecord) -> str | None:
    """The class of attacks that the check tests."""
    known = CHECKS.get(check.check)
    return known.attack_class if known else None


def _tested(what: str, checks: Sequence[CheckRecord], ids: str, *, attacks: bool = True) -> Coverage:
    """attacks: whether what the checks measure is that of attacks, which are then named."""
    tested = any(m.measured for check in checks for m in check.result.measurements)
    return Coverage(plain(what), _outcome(checks, attacks=attacks), tested, ids)


def _outcome(checks: Sequence[CheckRecord], *, attacks: bool) -> str:
    """Which checks ran, by which attacks, and which measured nothing."""
    ran = [check for check in checks if any(m.measured for m in check.result.measurements)]
    parts = ["tested by " + "; ".join(_ran(check, attacks=attacks) for check in ran)] if ran else []
    parts += [f"{check.check} measured nothing" for check in checks if check not in ran]
    return "; ".join(parts)


def _ran(check: CheckRecord, *, attacks: bool) -> str:
    measured = {m.subject for m in check.result.measurements if m.measured}
    subjects = [subject for subject in dict.fromkeys(m.subject for m in check.result.measurements) if subject]
    listed = check.settings.get("attacks")  # a figure may be that of the worst of them alone
    tried = [str(name) for name in listed] if isinstance(listed, list | tuple) else subjects
    named = _some([plain(name) for name in tried if name in measured or name not in subjects]) if attacks else ""
    missing = _some([plain(subject) for subject in subjects if subject not in measured])
    return plain(check.check) + (f" ({named})" if named else "") + (f", but not {missing}" if missing else "")


def _some(names: Sequence[str]) -> str:
    """The first MOST names, and how many more there are."""
    rest = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {rest:,} more" if rest > 0 else "")


def _ids(classes: Iterable[AttackClass]) -> str:
    every = [name for known in classes for name in (*known.nist, *known.atlas)]
    return ", ".join(dict.fromkeys(every))
