"""A page with images of the most exposed examples. They are training records, so it is only made on request."""

import base64
import hashlib
import io
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from privacy_gate.dossier.dataset import AuditData, hashed_ids
from privacy_gate.dossier.tables.images import BROKEN, FORMATS
from privacy_gate.errors import ConfigurationError, DatasetError, UndecidedError
from privacy_gate.reports.exposure import HEADS, cells, listed
from privacy_gate.reports.html_page import page_environment
from privacy_gate.reports.words import plain
from privacy_gate.verdict.exhibits import VulnerableRows
from privacy_gate.verdict.report import Report

LARGEST = 128
"""Length of a thumbnail's longer side, in pixels."""

LARGEST_SOURCE = 100_000_000
"""Larger images, in pixels, are not decoded: a small file could otherwise fill the memory."""


@dataclass(frozen=True)
class Card:
    """One listed example: its image as a data URI, and its facts as pairs of name and text."""

    name: str
    source: str
    facts: tuple[tuple[str, str], ...]


def thumbnails(report: Report, data: AuditData) -> str:
    """One self-contained HTML page with the downscaled images of the listed examples, named by their hashed ids.

    Raises ConfigurationError if the report lists no examples or examples of other data, or if the table has no
    images; UndecidedError if the check could not be measured; DatasetError if an image cannot be read.
    """
    rows = _rows(report)
    if data.image is None:
        raise ConfigurationError("--thumbnails: the audit table holds features, not images; omit --thumbnails")
    # The report names examples only by hashes, so they are found by hashing the ids of the table again.
    places = {name: row for row, name in enumerate(hashed_ids(data))}
    if missing := [row.name for row in rows.rows if row.name not in places]:
        raise ConfigurationError(
            f"--thumbnails: {len(missing)} listed examples are not among the audit data: use a report on this data"
        )
    cards = [
        Card(row.name, _uri(data.image(places[row.name]), row.name), tuple(zip(HEADS, cells(row), strict=True))[1:])
        for row in rows.rows
    ]
    environment = page_environment()
    css = environment.get_template("thumbnails.css").render()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template("thumbnails.html.jinja").render(
        report=report,
        cards=cards,
        css=Markup(css),  # noqa: S704 - the package's own file
        css_digest=Markup(digest),  # noqa: S704 - base64
    )


def _rows(report: Report) -> VulnerableRows:
    for check in report.checks:
        if (rows := listed(check)) is not None:
            return rows
    # If the check ran but lists nothing, its note says why, which helps more than advice to add the check.
    for note in (note for check in report.checks if check.check == "vulnerability" for note in check.result.notes):
        raise UndecidedError(f"--thumbnails: the report lists no examples: {plain(note)}")
    raise ConfigurationError("--thumbnails: the report lists no examples: add the check 'vulnerability' to the policy")


def _uri(payload: bytes, name: str) -> str:
    """The image as a small PNG without metadata, as a data URI."""
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
            if image.width * image.height > LARGEST_SOURCE:
                raise DatasetError(f"--thumbnails: example {name} has more than {LARGEST_SOURCE:,} pixels")
            small = image.convert("RGB")
            small.thumbnail((LARGEST, LARGEST))
            out = io.BytesIO()
            # A copy of the pixels alone: metadata such as a patient's name or a place stays behind.
            Image.frombytes("RGB", small.size, small.tobytes()).save(out, "PNG")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"--thumbnails: example {name} is not a known image format, or too large") from error
    except BROKEN as error:
        raise DatasetError(f"--thumbnails: the image of example {name} is damaged: {error}") from error
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
