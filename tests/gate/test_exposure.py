"""From evidence with planted truths to checks, report and thumbnails: who is exposed is found, and nobody is named."""

import datetime
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from privacy_gate.auditing.policy import Policy
from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.disparity import NO_PEOPLE, Disparity
from privacy_gate.checks.vulnerability import POINTS, Vulnerability
from privacy_gate.documents import load
from privacy_gate.dossier.dataset import AuditData, Split, hashed_ids
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, DatasetError, UndecidedError
from privacy_gate.gate.case import Request
from privacy_gate.gate.output import refuse_thumbnails, write_thumbnails
from privacy_gate.gate.steps import check
from privacy_gate.jobs.kinds import Job, Score, TrainReference
from privacy_gate.progress import silent
from privacy_gate.reports import FORMATS
from privacy_gate.reports.thumbnails import LARGEST, thumbnails
from privacy_gate.verdict.exhibits import GradientScatter, VulnerableRows
from privacy_gate.verdict.judgement import CheckResult, Measurement, Verdict
from privacy_gate.verdict.report import CandidateRecord, CheckRecord, DataRecord, PolicyRecord, Report, parse_report

ROWS, MODELS, FEATURES = 1200, 48, 6
PLANTED = np.array([3, 77, 410, 1101])
RECIPE = load(
    "{backbone: {name: identity}, classes: 4, optimizer: {name: adam, lr: 0.1}, epochs: 1, batch_size: 8}",
    Recipe,
    "recipe",
)


def picture(row: int) -> bytes:
    """A grey square as bright as its row, larger than a thumbnail."""
    out = io.BytesIO()
    Image.new("RGB", (300, 200), (row % 256, 0, 0)).save(out, "PNG")
    return out.getvalue()


class World:
    """An audit table and its references' answers; rows differ in how much training on them shows."""

    def __init__(self, seed: int, d: np.ndarray, group: np.ndarray | None = None, **data: Any) -> None:  # type: ignore[type-arg]
        rng = np.random.default_rng(seed)
        rows = len(d)
        split = np.where(np.arange(rows) < rows // 2, Split.MEMBER, Split.HOLDOUT).astype(np.int8)
        self.features = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        ids = np.array([f"patient-{row}" for row in range(rows)])
        label = rng.integers(0, 4, rows)
        self.data = AuditData(
            ids=ids, label=label, split=split, digest="ab" * 32, group=group, **({"embedding": self.features} | data)
        )
        self.included = np.array([rng.permutation(rows) < rows // 2 for _ in range(MODELS)])
        self.phi = d * self.included + rng.normal(size=(MODELS, rows))
        self.target = (d * (split == Split.MEMBER) + rng.normal(size=rows)).astype(np.float32)
        self.residual = np.exp(0.5 * d - 0.1 * self.phi)

    @property
    def subject(self) -> Subject:
        return Subject(RECIPE, "a" * 64, self.data, {})

    def results(self, job: Job) -> Mapping[str, np.ndarray]:  # type: ignore[type-arg]
        logits = np.zeros((self.data.rows, 4), np.float32)
        if isinstance(job, Score):
            return {"confidence": self.target, "logits": logits}
        assert isinstance(job, TrainReference)
        own = {"confidence": self.phi, "included": self.included, "residual": self.residual}
        return {name: values[job.index] for name, values in own.items()} | {"logits": logits}

    def measure(self, check: Any) -> CheckResult:
        return check.measure(self.subject, self.results, 0.95)


def planted_rows(**data: Any) -> World:
    d = np.full(ROWS, 0.4)
    d[PLANTED] = 6.0
    return World(0, d, **data)


@pytest.fixture(scope="module")
def world() -> World:
    return planted_rows()


@pytest.fixture(scope="module")
def found(world: World) -> CheckResult:
    return world.measure(Vulnerability(references=MODELS, listed=10))


def named(result: CheckResult) -> dict[tuple[str, str], Measurement]:
    return {(m.metric, m.subject): m for m in result.measurements}


def test_planted_rows_are_listed_first_by_their_hashes(world: World, found: CheckResult) -> None:
    (rows,) = (one for one in found.exhibits if isinstance(one, VulnerableRows))
    names = hashed_ids(world.data)
    assert {row.name for row in rows.rows[:4]} == {names[row] for row in PLANTED}
    assert len(rows.rows) == 10
    assert rows.audited == ROWS
    for row in rows.rows[:4]:
        at = names.index(row.name)
        assert row.label == world.data.label[at]
        assert row.split == ("member" if at < ROWS // 2 else "holdout")
        assert row.tpr > 0.9
        assert row.vulnerability == pytest.approx(6.0, abs=1.5)
        assert row.gradient is not None
    assert all(row.tpr < 0.1 for row in rows.rows[4:])


def test_what_most_rows_show_is_told_apart_from_what_the_planted_ones_do(found: CheckResult) -> None:
    rate = {name: named(found)[f"row_tpr_{name}_at_0.01_fpr", ""] for name in ("q50", "q99", "max")}
    assert rate["q50"].high is not None
    assert rate["q50"].high < 0.06
    assert rate["max"].low is not None
    assert rate["max"].low > 0.9
    gradient = named(found)["gradient_correlation", ""]
    assert gradient.measured
    assert named(found)["trace_correlation", ""].reason == "the dossier has no losses of each epoch"


def test_the_scatter_has_a_bounded_number_of_points_and_no_names(found: CheckResult) -> None:
    (scatter,) = (one for one in found.exhibits if isinstance(one, GradientScatter))
    assert len(scatter.gradient) == len(scatter.vulnerability) <= POINTS
    assert max(scatter.vulnerability) > 4
    assert scatter.audited == ROWS


def test_a_loss_trace_in_the_dossier_is_held_against_vulnerability() -> None:
    rng = np.random.default_rng(3)
    d = rng.exponential(1.5, ROWS)
    world = World(1, d, trace=(0.2 + d)[:, None] * rng.normal(size=(ROWS, 12)))
    trace = named(world.measure(Vulnerability(references=MODELS)))["trace_correlation", ""]
    assert trace.low is not None
    assert trace.low > 0.5
    assert f"{ROWS // 2:,} rows" in trace.samples


def grouped(seed: int, exposed: float, rows: int = 2400) -> World:
    """Three groups; the smallest's rows show `exposed` more."""
    group = np.resize(np.repeat(["<b>men</b>", "women", "a|b\u202e"], [6, 5, 1]), rows)
    return World(seed, 0.5 + exposed * (group == "a|b\u202e"), group)


def test_a_planted_group_is_flagged_and_it_is_that_one() -> None:
    result = grouped(5, 4.0).measure(Disparity(references=MODELS, permutations=999))
    figures = named(result)
    bad = figures["vulnerability", "group: a|b\u202e"]
    assert bad.low is not None
    assert bad.low > 0.2
    gap = figures["vulnerability_gap", "groups"]
    assert gap.low is not None
    assert gap.low > 0.1
    assert figures["disparity_p_value", "group: a|b\u202e"].high < 0.05  # type: ignore[operator]
    classes = figures["vulnerability_gap", "classes"]
    assert classes.low is not None
    assert classes.low < 0.05
    assert all("lira at fpr 0.01; " in m.samples for m in result.measurements if m.measured)


def test_a_planted_client_is_flagged_beside_groups_that_are_alike_and_both_can_be_asked_for() -> None:
    client = np.array([f"site {row % 8}" for row in range(2400)])
    group = np.where(np.arange(2400) // 8 % 2, "f", "m")
    world = World(12, 0.5 + 4.0 * (client == "site 3"), group, client=client)
    figures = named(world.measure(Disparity(references=MODELS, permutations=999)))
    assert ("vulnerability", "client: site 3") in figures
    assert figures["disparity_p_value", "client: site 3"].high < 0.05  # type: ignore[operator]
    gap, alike = figures["disparate_mia", "clients"], figures["disparate_mia", "groups"]
    assert gap.low is not None
    assert gap.low > 0.3
    assert figures["disparate_mia_p_value", "clients"].high < 0.01  # type: ignore[operator]
    assert alike.low == 0
    assert figures["disparate_mia_p_value", "groups"].value > 0.01  # type: ignore[operator]
    assert "members, 8 groups" in gap.samples
    asked = world.measure(Disparity(references=MODELS, permutations=99, by=("client", "group")))
    assert {m.subject for m in asked.measurements if m.metric == "disparate_mia"} == {"clients", "groups"}
    assert not [m for m in asked.measurements if m.subject.startswith("class")]
    classes = named(world.measure(Disparity(references=MODELS, permutations=99, by=("class",))))
    assert classes["disparate_mia", ""].reason == NO_PEOPLE


def test_the_same_evidence_gives_the_same_p_values() -> None:
    check = Disparity(references=MODELS, permutations=199)
    assert grouped(6, 1.0).measure(check) == grouped(6, 1.0).measure(check)


def test_the_best_rate_is_the_lowest_that_the_holdout_resolves_and_too_few_rows_are_not_measured() -> None:
    small = grouped(7, 0.0, rows=600)
    assert "at fpr 0.1" in small.measure(Disparity(references=MODELS)).measurements[0].samples
    result = small.measure(Disparity(references=MODELS, fpr=0.01))
    assert {m.reason for m in result.measurements} == {"needs n >= 1,000 holdout rows at fpr 0.01, found 300"}


def test_groups_that_a_policy_asks_for_and_the_table_lacks_are_not_measured() -> None:
    d = np.full(ROWS, 0.4)
    asked = World(8, d).measure(Disparity(references=MODELS, by=("group",)))
    reason = "the audit table has no groups: add columns: {group: ...} to the manifest"
    assert {m.reason for m in asked.measurements if m.subject == "group"} == {reason}
    assert not [m for m in World(8, d).measure(Disparity(references=MODELS)).measurements if m.subject == "group"]


POLICY = """\
name: exposure
version: 1
release_context: api
checks:
  - check: vulnerability
    references: 48
    listed: 10
    limits:
      row_tpr_max_at_0.01_fpr: {max: 0.5}
      gradient_correlation: {max: 0.9, severity: warn}
  - check: disparity
    attack: bavaria
    fpr: 0.1
    by: [class, group]
    limits:
      vulnerability: {max: 0.3}
      vulnerability_gap: {max: 0.2}
      disparity_p_value: {min: 0.05, severity: warn}
"""


def test_policies_that_name_the_checks_load() -> None:
    policy = load(POLICY, Policy, "policy.yaml")
    assert [check.name for check in policy.checks] == ["vulnerability", "disparity"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("attack: bavaria", "attack: lirra"),
        ("vulnerability_gap: {max: 0.2}", "gap: {max: 0.2}"),
        ("listed: 10", "listed: 0"),
        ("fpr: 0.1", "fpr: worst"),
    ],
)
def test_policies_with_settings_that_mean_nothing_are_refused(wrong: str, message: str) -> None:
    with pytest.raises(ConfigurationError):
        load(POLICY.replace(wrong, message), Policy, "policy.yaml")


def report_of(world: World, checks: list[Any]) -> Report:
    measured = [(check, world.measure(check)) for check in checks]
    records = tuple(CheckRecord(check=check.name, settings={}, result=result) for check, result in measured)
    return Report(
        created="2030-01-01T00:00:00+00:00",
        tool="privacy-gate 0.1.0",
        versions={},
        candidate=CandidateRecord(
            uri="models:/m/1", name="m", version="1", alias=None, run_id=None, model_id=None, digest="c" * 64
        ),
        policy=PolicyRecord(
            name="p",
            version=1,
            source="p.yaml",
            sha256="d" * 64,
            recorded="2030-01-01T00:00:00+00:00",
            release_context="api",
            confidence=0.95,
            alias=None,
        ),
        recipe=RECIPE,
        data=DataRecord(
            sha256=world.data.digest,
            members=world.data.rows // 2,
            holdout=world.data.rows // 2,
            population=0,
            classes=4,
            fewest_members_per_class=1,
            median_members_per_class=1.0,
        ),
        checks=records,
        findings=(),
        verdict=Verdict.UNDECIDED,
        exit_code=Verdict.UNDECIDED.exit_code,
        threat_model=(),
        not_tested=(),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    world = grouped(9, 3.0)
    return report_of(world, [Vulnerability(references=MODELS, listed=10), Disparity(references=MODELS)])


def test_no_view_holds_an_id_and_every_one_holds_the_hashes(report: Report) -> None:
    (rows,) = (one for one in report.checks[0].result.exhibits if isinstance(one, VulnerableRows))
    for name, form in FORMATS.items():
        written = form.render(report)
        assert "patient" not in written
        assert name == "text" or all(row.name in written for row in rows.rows)
    assert parse_report(FORMATS["json"].render(report), "test") == report


def test_the_page_draws_the_scatter_and_both_forests_within_their_fields(report: Report) -> None:
    page = FORMATS["html"].render(report)
    assert page.count('class="speck"') == POINTS
    assert page.count('class="chart forest"') == 2
    field = re.findall(r'<svg class="chart forest".*?</svg>', page, re.DOTALL)
    for drawn in field:
        for x in re.findall(r'cx="([\d.]+)"', drawn):
            assert 168 <= float(x) <= 504
    assert "&lt;b&gt;men&lt;/b&gt;" in page
    assert "\u202e" not in page


@pytest.mark.parametrize("count", [2, 24, 25, 300])
def test_a_forest_of_many_groups_draws_the_most_exposed(count: int) -> None:
    from privacy_gate.reports.exposure import DRAWN, forest

    groups = [
        Measurement(metric="vulnerability", subject=f"class: {i}", value=i / 400, low=-0.1, high=0.9, confidence=0.95)
        for i in range(count)
    ]
    drawn = forest(groups, None)
    assert len(drawn.strips) == min(count, DRAWN)
    assert drawn.strips[0].name == str(count - 1)
    assert bool(drawn.note) == (count > DRAWN)


def test_the_thumbnail_page_shows_exactly_the_listed_rows_small_and_by_hash(found: CheckResult) -> None:
    asked: list[int] = []

    def image(row: int) -> bytes:
        asked.append(row)
        return picture(row)

    world = planted_rows(embedding=None, image=image)
    rows = next(one for one in found.exhibits if isinstance(one, VulnerableRows))
    report = report_of(planted_rows(), [Vulnerability(references=MODELS, listed=10)])
    page = thumbnails(report, world.data)
    names = hashed_ids(world.data)
    assert sorted(asked) == sorted(names.index(row.name) for row in rows.rows)
    assert "This page shows training records" in page
    assert "patient" not in page
    assert not re.search(r"https?:|<script|url\(", page)
    assert "default-src 'none'; img-src data:" in page
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="example ([0-9a-f]{16})"', page)
    assert [name for _, name in shown] == [row.name for row in rows.rows]
    import base64

    for payload, name in shown:
        with Image.open(io.BytesIO(base64.b64decode(payload))) as small:
            assert max(small.size) <= LARGEST
            assert small.getpixel((0, 0))[0] == names.index(name) % 256
            assert not small.info


def test_thumbnails_of_other_data_or_of_features_or_without_a_list_are_refused(report: Report) -> None:
    other = World(1, np.zeros(50), embedding=None, image=picture)
    with pytest.raises(ConfigurationError, match="not among"):
        thumbnails(report, other.data)
    with pytest.raises(ConfigurationError, match="features, not images"):
        thumbnails(report, World(1, np.zeros(50)).data)
    bare = report.model_copy(update={"checks": report.checks[1:]})
    with pytest.raises(ConfigurationError, match="check 'vulnerability'"):
        thumbnails(bare, other.data)


def test_thumbnails_of_a_check_that_was_not_measured_say_why(report: Report) -> None:
    said = "vulnerability measured nothing: references lack clients"
    lacking = [
        check.model_copy(update={"result": CheckResult(measurements=(), notes=(said,))}) for check in report.checks[:1]
    ]
    with pytest.raises(UndecidedError, match=f"lists no examples: {said}"):
        thumbnails(report.model_copy(update={"checks": lacking}), World(1, np.zeros(50)).data)


def test_an_image_that_cannot_be_read_is_told_by_hash() -> None:
    report = report_of(planted_rows(), [Vulnerability(references=MODELS, listed=1)])
    broken: Callable[[int], bytes] = lambda row: b"no image"  # noqa: E731
    with pytest.raises(DatasetError, match=r"example [0-9a-f]{16}"):
        thumbnails(report, planted_rows(embedding=None, image=broken).data)


@pytest.mark.parametrize("place", ["report/thumbs.html", "report/deep/thumbs.html", "other/../report/x.html", "report"])
def test_thumbnails_never_lie_in_the_report_s_folder(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="registry"):
        refuse_thumbnails(tmp_path / place, tmp_path / "report", load(POLICY, Policy, "p"))


def test_thumbnails_behind_a_link_into_the_report_s_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "report")
    with pytest.raises(ConfigurationError, match="registry"):
        refuse_thumbnails(tmp_path / "link" / "x.html", tmp_path / "report", load(POLICY, Policy, "p"))


def test_thumbnails_need_the_check_that_lists_rows(tmp_path: Path) -> None:
    start, end = POLICY.index("  - check: vulnerability"), POLICY.index("  - check: disparity")
    policy = load(POLICY[:start] + POLICY[end:], Policy, "p")
    with pytest.raises(ConfigurationError, match="check 'vulnerability'"):
        refuse_thumbnails(tmp_path / "x.html", tmp_path / "report", policy)
    refuse_thumbnails(tmp_path / "x.html", tmp_path / "report", load(POLICY, Policy, "p"))


def test_the_page_is_its_owner_s_alone_and_replaces_a_link_without_following_it(tmp_path: Path) -> None:
    report = report_of(planted_rows(), [Vulnerability(references=MODELS, listed=1)])
    data = planted_rows(embedding=None, image=picture).data
    (tmp_path / "elsewhere").write_text("kept")
    page = tmp_path / "page.html"
    page.symlink_to(tmp_path / "elsewhere")
    write_thumbnails(page, report, data)
    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert page.stat().st_mode & 0o777 == 0o600
    assert "data:image/png" in page.read_text()
    with pytest.raises(ConfigurationError, match="name a file that can be written"):
        write_thumbnails(tmp_path / "absent" / "page.html", report, data)


def test_a_pass_with_thumbnails_in_the_report_s_folder_stops_before_anything_is_computed(
    scene: Any, tracking: str, tmp_path: Path
) -> None:
    from privacy_gate.compute.machine.device import Machine
    from privacy_gate.registry import producer

    (tmp_path / "policy.yaml").write_text(POLICY)
    uri = producer.register(scene.train(scene.member_rows), "exposure", scene.recipe, scene.manifest, {}, tracking)
    with pytest.raises(ConfigurationError, match="lies in the report's folder"):
        check(
            Request(uri, tmp_path / "policy.yaml", str(tmp_path / "store"), tracking),
            output=tmp_path / "report",
            machine=Machine(threads=1),
            now=datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
            progress=silent,
            thumbnails=tmp_path / "report" / "thumbnails.html",
        )
    assert not (tmp_path / "report").exists()
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_lines_on_coverage_name_a_bounded_number_of_groups() -> None:
    from privacy_gate.reports.coverage import MOST, coverage

    group = np.array([f"ward {row % 60:02}" for row in range(2400)])
    report = report_of(World(11, np.full(2400, 0.5), group), [Disparity(references=MODELS, by=("group",))])
    (line,) = (one for one in coverage(report) if one.tested)
    assert f"and {60 + 2 - MOST} more" in line.outcome
    assert "ward 59" not in line.outcome
