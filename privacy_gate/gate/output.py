"""Writes the files of a run: reports, advice, and thumbnails, which never lie in the folder of reports."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from privacy_gate.auditing.advice import Advice
from privacy_gate.auditing.policy import Policy
from privacy_gate.checks.vulnerability import Vulnerability
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.errors import ConfigurationError
from privacy_gate.reports import FORMATS, advice_page, json_text
from privacy_gate.reports.thumbnails import thumbnails as thumbnail_page
from privacy_gate.verdict.report import Report


def refuse_thumbnails(file: Path, folder: Path, policy: Policy) -> None:
    """Raises ConfigurationError if the file lies in the report's folder, or if the policy lists no examples."""
    # Resolved first: a symbolic link or `..` must not hide that the file ends up in the report's folder.
    if file.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"--thumbnails {file}: lies in the report's folder {folder}, whose files are uploaded to the registry; "
            "name a file elsewhere"
        )
    if not any(isinstance(check, Vulnerability) for check in policy.checks):
        raise ConfigurationError(
            "--thumbnails: the policy lists no examples: add the check 'vulnerability' to it, or omit --thumbnails"
        )


def write_thumbnails(file: Path, report: Report, data: AuditData) -> None:
    """Writes a page with the images of the listed examples, readable by its owner only: it shows training records."""
    text = thumbnail_page(report, data)
    try:
        # O_EXCL never follows a link that somebody placed there, and the page is private from its first byte on.
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as page:
            page.write(text)
    except OSError as error:
        raise ConfigurationError(f"--thumbnails {file}: {error.strerror}; name a file that can be written") from error


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes the report in every format that has a file name; returns the paths."""
    return _write(((form.file_name, form.render(report)) for form in FORMATS.values() if form.file_name), folder)


def make_folder(folder: Path) -> None:
    """Makes the folder of reports. Raises ConfigurationError if it cannot be written.

    Called before anything is computed, so that hours of work do not end with a folder that cannot be written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # mkdir also succeeds for an existing folder that is read-only.
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}; name a folder that can be written") from error


def _write(texts: Iterable[tuple[str, str]], folder: Path) -> list[Path]:
    paths = []
    make_folder(folder)
    with _writing(folder):
        for name, text in texts:
            paths.append(folder / name)
            paths[-1].write_text(text, encoding="utf-8")
    return paths


def write_advice(advised: Advice, folder: Path) -> list[Path]:
    """Writes the table as a page and as JSON; returns the paths."""
    return _write([("advice.json", json_text.render(advised)), ("advice.html", advice_page.render(advised))], folder)
