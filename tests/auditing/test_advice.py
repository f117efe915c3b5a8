"""Advice on data with known answers: recipes that leak less rank better, and dropped rows train no model."""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from privacy_gate.auditing.advice import Advice, Target, advice, dropped_rows, gather, measure, targets, unmeasured
from privacy_gate.auditing.audit import plan, subject_of
from privacy_gate.auditing.policy import Policy, PolicyInForce
from privacy_gate.cli import app
from privacy_gate.compute.machine.device import Machine
from privacy_gate.documents import load
from privacy_gate.dossier.alternatives import FAMILIES, Alternative, alternatives, families
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.candidate import Candidate, Dossier
from privacy_gate.dossier.dataset import AuditData, Columns, DataManifest, Split, Table, hashed_ids
from privacy_gate.dossier.optimizers import Adam, AdamW, Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, UndecidedError
from privacy_gate.gate import steps as gate
from privacy_gate.gate.case import Case
from privacy_gate.gate.output import write_advice
from privacy_gate.jobs.kinds import TrainReference, train_reference
from privacy_gate.metrics.vulnerability import vulnerability
from privacy_gate.progress import silent
from privacy_gate.reports import advice_page
from privacy_gate.store import Store

NOW = datetime.datetime(2030, 1, 1, 12, 0, tzinfo=datetime.UTC)
REFERENCES = 16
MEMBERS, HOLDOUT, POPULATION, FEATURES, CLASSES = 100, 300, 50, 64, 4
POLICY = """\
name: test
version: 3
release_context: api
checks:
  - check: membership
    references: 16
    attacks: [lira]
    limits:
      tpr_at_0.1_fpr: {max: 0.35}
"""


def refuse(recipe: Recipe, epsilon: float) -> dict[str, float]:
    raise UndecidedError("no accountant here")


def recipe(**changes: object) -> Recipe:
    settings = {
        "backbone": Backbone(name="identity"),
        "classes": CLASSES,
        "optimizer": Adam(name="adam", lr=0.002),
        "epochs": 40,
        "batch_size": 25,
    }
    return Recipe.model_validate({**settings, **changes})


def audit_data() -> AuditData:
    """Overlapping Gaussian classes with a few mislabelled rows, which a model must learn by heart."""
    rng = np.random.default_rng(1)
    rows = MEMBERS + HOLDOUT + POPULATION
    label = rng.integers(0, CLASSES, rows)
    x = rng.normal(size=(CLASSES, FEATURES))[label] * 0.5 + rng.normal(size=(rows, FEATURES))
    counts = ((Split.MEMBER, MEMBERS), (Split.HOLDOUT, HOLDOUT), (Split.POPULATION, POPULATION))
    split = np.concatenate([np.full(count, part, np.int8) for part, count in counts])
    ids = np.array([f"row-{row}" for row in range(rows)])
    return AuditData(ids, label, split, "d" * 64, embedding=x.astype(np.float32))


@dataclass(frozen=True)
class Done:
    case: Case
    advised: Advice
    computed: int

    def again(self, **options: object) -> tuple[Advice, int]:
        return run(self.case, **options)


def run(case: Case, **options: object) -> tuple[Advice, int]:
    settings = {"references": REFERENCES, "families": FAMILIES, "epsilons": (), "now": NOW, "progress": silent}
    return gate.advise(case, Machine(device="cpu", threads=1), **{**settings, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("advice")
    data = audit_data()
    manifest = DataManifest(
        table=Table(uri="table.parquet", sha256="a" * 64, format="parquet"), columns=Columns(embedding="x")
    )
    dossier = Dossier(recipe=recipe(), data=manifest)
    uri, name = "models:/<b>&amp;</b>\x1b[31m/1", "<script>alert(1)</script>"
    candidate = Candidate(uri, name, "1", folder, "c" * 64, dossier)
    rules = PolicyInForce(load(POLICY, Policy, "policy.yaml"), "e" * 64, "policy.yaml", NOW.isoformat())
    case = Case(rules, candidate, data, Store(str(folder / "store")))
    return Done(case, *run(case))


def rates(advised: Advice, family: str) -> list[float]:
    return [row.leak[0].value or 0.0 for row in advised.rows if row.family == family]


def test_the_table_has_one_row_for_each_alternative_and_the_recipe_itself_first(done: Done) -> None:
    assert [row.name for row in done.advised.rows] == [
        "as it is", "weights", "probabilities, 3 decimals",
        "the largest probability", "the label alone", "20 epochs", "10 epochs", "1 epoch",
        "decay 0.001", "decay 0.01", "decay 0.1", "smoothing 0.1", "random start", "drop 1 %", "drop 5 %",
    ]  # fmt: skip
    unmeasured = {row.name: row.leak[0].reason for row in done.advised.rows if not row.leak[0].measured}
    # The policy's own attacks need no heads, so none was kept, and only heads tell what top_k would show.
    assert list(unmeasured) == ["the largest probability"]
    assert all(row.accuracy.measured for row in done.advised.rows)
    lines = advice_page.table(done.advised).splitlines()
    assert [line.split("  ")[0] for line in lines[2:17]] == [row.name for row in done.advised.rows]


def test_a_recipe_that_memorises_leaks_less_with_fewer_epochs(done: Done) -> None:
    (whole,), fewer = rates(done.advised, "as-is"), rates(done.advised, "epochs")
    assert [whole, *fewer] == sorted([whole, *fewer], reverse=True)
    by_name = {row.name: row for row in done.advised.rows}
    assert (by_name["1 epoch"].leak[0].high or 1.0) < (by_name["as it is"].leak[0].low or 0.0)
    assert by_name["as it is"].meets is False
    assert by_name["1 epoch"].meets is True
    assert done.advised.choice is not None
    assert done.advised.choice in advice_page.sentence(done.advised)


def test_dropped_rows_are_the_most_vulnerable_and_no_reference_is_trained_on_them(done: Done) -> None:
    subject, case = subject_of(done.case.candidate, done.case.data, done.case.policy), done.case
    options = alternatives(subject.recipe, FAMILIES, (), refuse)
    as_is = gather(options[0], subject, REFERENCES, (), case.store.get)
    row, option = done.advised.rows[-1], options[-1]
    without = dropped_rows(option, subject, as_is)
    assert len(without) == 20  # 5 % of 400
    exposed = vulnerability(as_is.phi, as_is.included)
    assert min(exposed[list(without)]) >= max(np.delete(exposed, list(without)))
    assert list(row.dropped) == [hashed_ids(case.data)[index] for index in without]
    assert row.dropped_members == sum(index < MEMBERS for index in without)
    for index in range(REFERENCES):
        stored = case.store.get(train_reference(option.recipe, case.data.digest, index, without=without))
        assert not stored["included"][list(without)].any()
        assert stored["included"].sum() == round(380 * MEMBERS / 400)
    assert row.before[0].samples == row.leak[0].samples == "16 models, 380 rows"
    assert row.accuracy.samples == "16 models, 400 rows"


def test_a_second_run_trains_nothing_and_says_the_same(done: Done) -> None:
    assert done.computed == 11 * REFERENCES
    assert done.again() == (done.advised, 0)


def test_the_recipe_as_it_is_shares_the_references_of_check(done: Done) -> None:
    planned = plan(done.case.policy, done.case.candidate, done.case.data)
    references = [job for job in planned if isinstance(job, TrainReference)]
    assert len(references) == REFERENCES
    assert all(done.case.store.has(job) for job in references)


def test_an_alternative_that_cannot_be_trained_is_a_row_with_the_reason(done: Done) -> None:
    (_, option) = alternatives(recipe(), ["dp-sgd"], [8.0], refuse)
    row = unmeasured(option, done.advised.targets)
    assert (row.accuracy.reason, row.meets, row.best) == ("no accountant here", False, False)
    subject = subject_of(done.case.candidate, done.case.data, done.case.policy)
    rows = [*done.advised.rows, row]
    whole = advice(done.case.candidate, done.case.policy, "e" * 64, subject, REFERENCES, rows, NOW)
    assert re.search(r"DP-SGD ε 8 +not measured +no accountant here", advice_page.table(whole))
    assert "not measured: no accountant here" in advice_page.render(whole)


def test_an_alternative_whose_training_diverges_is_not_measured_and_meets_no_limit(done: Done) -> None:
    subject = subject_of(done.case.candidate, done.case.data, done.case.policy)
    option = Alternative("weight-decay", "decay 100", recipe())
    as_is = gather(option, subject, REFERENCES, (), done.case.store.get)
    broken = type(as_is)(np.full_like(as_is.phi, np.nan), as_is.included, as_is.correct, as_is.stays)
    row = measure(option, subject, broken, as_is, done.advised.targets, 0.95)
    assert "diverged" in str(row.leak[0].reason)
    assert row.meets is False


def test_the_best_rows_are_those_that_no_other_dominates(done: Done) -> None:
    measured = [row for row in done.advised.rows if row.leak[0].measured]
    assert len(measured) == len(done.advised.rows) - 1
    assert not any(row.best for row in done.advised.rows if not row.leak[0].measured)
    figures = [(row.accuracy.value or 0.0, row.leak[0].value or 0.0) for row in measured]
    for row, own in zip(measured, figures, strict=True):
        beaten = any(other != own and other[0] >= own[0] and other[1] <= own[1] for other in figures)
        assert row.best is not beaten


def test_a_limit_is_met_only_at_the_unfavourable_end(done: Done) -> None:
    for row in done.advised.rows:
        assert row.meets is ((row.leak[0].high or 1.0) <= 0.35)


@pytest.mark.parametrize(
    ("limits", "rows", "expected"),
    [
        ("tpr_at_0.01_fpr: {max: 0.05}, auc: {max: 0.6}", 5000, [(0.01, 0.05)]),
        ("tpr_at_0.1_fpr: {max: 0.2}, tpr_at_0.001_fpr: {max: 0.01}", 500, [(0.1, 0.2), (0.001, 0.01)]),
        ("tpr_at_0.01_fpr: {max: 0.05, severity: warn}", 5000, [(0.01, None)]),
        ("auc: {max: 0.6}", 1000, [(0.01, None)]),
        ("auc: {max: 0.6}", 999, [(0.1, None)]),
    ],
)
def test_rates_are_those_that_the_policy_limits_or_else_the_lowest_that_the_data_resolve(
    limits: str, rows: int, expected: list[tuple[float, float | None]]
) -> None:
    text = POLICY.partition("    limits:")[0] + f"    limits: {{{limits}}}\n"
    found = targets(load(text, Policy, "policy.yaml"), rows)
    assert found == tuple(Target(fpr=fpr, limit=limit) for fpr, limit in expected)


def test_the_strictest_limit_of_both_checks_counts() -> None:
    limits = "{recipe_tpr_at_0.1_fpr: {max: 0.2}, calibrated_tpr_at_0.01_fpr: {max: 0.1}}"
    text = POLICY + f"  - {{check: recipe, limits: {limits}}}\n"
    assert targets(load(text, Policy, "policy.yaml"), 5000) == (Target(fpr=0.1, limit=0.2), Target(fpr=0.01))


def names(of: Recipe) -> list[str]:
    return [option.name for option in alternatives(of, FAMILIES, (8, 1, 8), refuse)]


def test_alternatives_differ_from_the_recipe_and_suit_its_optimiser() -> None:
    assert names(recipe(epochs=1, label_smoothing=0.2))[1:4] == ["decay 0.001", "decay 0.01", "decay 0.1"]
    assert names(recipe(epochs=2))[1:2] == ["1 epoch"]
    assert names(recipe(epochs=2))[-2:] == ["DP-SGD ε 8", "DP-SGD ε 1"]
    decays = [
        name for name in names(recipe(optimizer=AdamW(name="adamw", lr=0.2, weight_decay=0.1))) if "decay" in name
    ]
    assert decays == ["decay 1"]  # a decay of 10 would overshoot 0 in every step
    decays = [name for name in names(recipe(optimizer=Sgd(name="sgd", lr=0.1, weight_decay=0.01))) if "decay" in name]
    assert decays == ["decay 0.1"]
    changed = [option.recipe for option in alternatives(recipe(), FAMILIES, (), refuse) if option.family != "drop"]
    assert len({repr(each) for each in changed}) == len(changed)


def test_a_change_that_recipes_do_not_allow_is_a_row_with_the_reason() -> None:
    (_, option) = alternatives(recipe(), ["dp-sgd"], (8,), lambda own, epsilon: {"noise_multiplier": -1.0})
    assert option.reason
    assert option.recipe == recipe()


def test_if_a_program_trains_only_changes_of_its_rows_are_tried() -> None:
    options = alternatives(recipe(adaptation="command"), FAMILIES, (8,), refuse)
    tried = {option.family for option in options if not option.reason}
    assert tried == {"as-is", "drop"}
    assert {option.reason for option in options[1:-3]} == {
        "the policy's trainer trains it, and this setting is not passed to that program"
    }


def test_families_are_chosen_by_name_and_a_wrong_one_names_the_nearest() -> None:
    assert families(["epochs", "drop"], ["drop"]) == ["epochs"]
    assert families([], ["dp-sgd"]) == ["release", "epochs", "weight-decay", "label-smoothing", "random-start", "drop"]
    with pytest.raises(ConfigurationError, match="no alternative is called 'epoch'; did you mean 'epochs'"):
        families(["epoch"], [])


def test_only_the_selected_families_are_tried(done: Done) -> None:
    advised, computed = done.again(families=families(["label-smoothing"], []))
    assert [row.family for row in advised.rows] == ["as-is", "label-smoothing"]
    assert computed == 0


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def test_hostile_names_are_text_on_the_page_and_nothing_is_loaded(done: Done) -> None:
    page = advice_page.render(done.advised)
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "link", "iframe", "b\x1b"} & set(tags.found)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('<svg class="chart scatter"') == 1


def test_the_files_are_written_and_the_json_reads_back_equal(done: Done, tmp_path: Path) -> None:
    paths = write_advice(done.advised, tmp_path / "out")
    assert [path.name for path in paths] == ["advice.json", "advice.html"]
    assert Advice.model_validate_json(paths[0].read_text()) == done.advised


def test_progress_names_the_alternative_and_never_goes_back_within_one(done: Done, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def watch(task: str, count: int, total: int) -> None:
        assert seen.get(task, 0) <= count <= total
        seen[task] = count

    fresh = replace(done.case, store=Store(str(tmp_path)))
    run(fresh, references=8, families=["epochs"], progress=watch)
    assert seen["alternatives"] == 4
    assert seen["10 epochs: train references"] == 8


def test_advice_without_a_limit_names_the_rows_that_are_not_dominated(done: Done) -> None:
    free = done.advised.model_copy(update={"targets": (Target(fpr=0.1),), "choice": None})
    assert advice_page.sentence(free).startswith("The policy has no limit")
    assert "limit met" not in advice_page.render(free)


def test_a_wrong_alternative_on_the_command_line_is_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["advise", "models:/x/1", "--policy", "p.yaml", "--skip", "noise"])
    assert result.exit_code == 2
    assert "no alternative is called 'noise'" in result.output


@pytest.mark.slow
def test_the_command_writes_a_page_and_nothing_to_the_registry(
    scenes: Callable[..., object], tracking: str, tmp_path: Path
) -> None:
    from privacy_gate.registry import producer
    from privacy_gate.registry import pull as registry

    scene = scenes(tmp_path, holdout=200, features=32, epochs=4)
    model = scene.train(scene.member_rows)  # type: ignore[attr-defined]
    producer.register(model, "advised", scene.recipe, scene.manifest, {}, tracking)  # type: ignore[attr-defined]
    (tmp_path / "policy.yaml").write_text(POLICY)
    before = registry.client_of(tracking).get_model_version("advised", "1")
    arguments = [
        "advise",
        "models:/advised/1",
        "--policy",
        "policy.yaml",
        "--tracking-uri",
        tracking,
        "--store",
        "store",
    ]
    result = CliRunner().invoke(app, [*arguments, "--references", "8", "--output", "out", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "2 epochs" in result.output
    assert "88 jobs computed" not in result.output  # 4 epochs: 2 and 1, so one alternative fewer
    assert "80 jobs computed" in result.output
    assert (tmp_path / "out" / "advice.html").is_file()
    after = registry.client_of(tracking).get_model_version("advised", "1")
    assert after.tags == before.tags
