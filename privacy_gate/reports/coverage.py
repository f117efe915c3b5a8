"""Which attacks were tested and which were not, with ids of public taxonomies, and the texts that ask for tests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from privacy_gate.checks import CHECKS
from privacy_gate.documents import Record
from privacy_gate.reports.words import capital, check_title, plain
from privacy_gate.verdict.report import CheckRecord, Report

MOST = 16
"""A line names at most this many subjects of a check."""


class Reference(Record):
    """A standard or law that asks for evidence, a summary of its demand, and where the report meets it."""

    reference: str
    asks: str
    found: str


class AttackClass(Record):
    """A class of attacks in public taxonomies. Checks name the one that they test.

    words  phrases by which the report's list of untested topics names it
    """

    name: str
    nist: tuple[str, ...] = ()
    atlas: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


class References(Record):
    """The data file that maps reports to public texts. `as_of`: the day on which the texts were read."""

    as_of: str
    texts: tuple[Reference, ...]
    attacks: tuple[AttackClass, ...]


@cache
def references() -> References:
    """The mapping that comes with the package."""
    text = resources.files("privacy_gate.reports").joinpath("references.json").read_text(encoding="utf-8")
    return References.model_validate_json(text)


@dataclass(frozen=True)
class Coverage:
    """One line of the coverage table: a topic, whether it was tested, and its taxonomy ids."""

    what: str
    outcome: str
    tested: bool
    ids: str


def coverage(report: Report) -> list[Coverage]:
    """The tested topics with their checks, then the untested topics of the report, all with taxonomy ids."""
    known = references().attacks
    lines = []
    for attacks in known:
        checks = [check for check in report.checks if _attacks(check) == attacks.name]
        lines.append(_tested(capital(attacks.name), checks, _ids([attacks])))
    mapped = {attacks.name for attacks in known}
    # Checks that no taxonomy knows, such as utility and fairness, get lines of their own.
    others = [check for check in report.checks if _attacks(check) not in mapped]
    lines += [_tested(check_title(check.check), [check], "", attacks=False) for check in others]
    for line in report.not_tested:
        named = [attacks for attacks in known if any(word in line.lower() for word in attacks.words)]
        lines.append(Coverage(capital(plain(line)), "not tested", False, _ids(named)))
    # A class of attacks without any check in this report has no outcome; `not_tested` lists it instead.
    return [line for line in lines if line.outcome]


def _attacks(check: CheckRecord) -> str | None:
    """The class of attacks that the check tests."""
    known = CHECKS.get(check.check)
    return known.attack_class if known else None


def _tested(what: str, checks: Sequence[CheckRecord], ids: str, *, attacks: bool = True) -> Coverage:
    """The line of a topic that checks cover. attacks: whether to name the attacks that the checks ran."""
    tested = any(m.measured for check in checks for m in check.result.measurements)
    return Coverage(plain(what), _outcome(checks, attacks=attacks), tested, ids)


def _outcome(checks: Sequence[CheckRecord], *, attacks: bool) -> str:
    """Which checks ran, with which attacks, and which checks measured nothing."""
    ran = [check for check in checks if any(m.measured for m in check.result.measurements)]
    parts = ["tested by " + "; ".join(_ran(check, attacks=attacks) for check in ran)] if ran else []
    parts += [f"{check.check} measured nothing" for check in checks if check not in ran]
    return "; ".join(parts)


def _ran(check: CheckRecord, *, attacks: bool) -> str:
    measured = {m.subject for m in check.result.measurements if m.measured}
    subjects = [subject for subject in dict.fromkeys(m.subject for m in check.result.measurements) if subject]
    # A check may report the worst of its attacks alone, so its settings say better than its figures which ones ran.
    listed = check.settings.get("attacks")
    tried = [str(name) for name in listed] if isinstance(listed, list | tuple) else subjects
    # An attack without a figure of its own still ran; one whose figure is missing did not.
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
