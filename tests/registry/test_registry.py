"""Registries with missing, faulty, hostile or changed content, and registries that cannot be reached."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from privacy_gate.cli import app
from privacy_gate.documents import dump, load
from privacy_gate.dossier.candidate import Candidate, Claim
from privacy_gate.dossier.dataset import Columns, DataManifest, Table
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import CandidateError, ConfigurationError, ConflictError, GateError, RegistryError
from privacy_gate.registry import producer, promotion
from privacy_gate.registry import pull as registry
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, judge, verdict
from privacy_gate.verdict.report import CandidateRecord, CheckRecord, DataRecord, PolicyRecord, Report
from privacy_gate.weights import artifact_digest

RECIPE = load(
    "{backbone: {name: identity}, classes: 5, optimizer: {name: adam, lr: 0.1}, epochs: 1, batch_size: 50}",
    Recipe,
    "recipe",
)
DATA = DataManifest(
    table=Table(uri="table.parquet", sha256="ab" * 32, format="parquet"), columns=Columns(embedding="features")
)
PARTS = {"privacy_gate/recipe.yaml": dump(RECIPE), "privacy_gate/data.yaml": dump(DATA)}
HOSTILE = ["<script>alert(1)</script>".replace("/", "|"), "::error::owned".replace(":", "\N{FULLWIDTH COLON}"),
           "[red]x[/red]".replace("/", "|"), "%0A%3A%3Aerror", "a@b", "naïve 模型", "'; drop table x"]  # fmt: skip
UNPRINTABLE = ["two\nlines", "esc\x1b[31mred", "bidi\u202etxt", "tab\tname"]


@pytest.fixture
def client(tracking: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The producer's client. MLflow resolves the source of a new version by the variable, not by its client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    return registry.client_of(tracking)


@pytest.fixture
def experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("tests")
    assert found is not None
    return str(found.experiment_id)


Logs = Callable[..., Any]


@pytest.fixture
def log(client: MlflowClient, experiment: str, tmp_path: Path) -> Logs:
    """Logs a model of plain files in a new run, or in the given run."""

    def logged(files: dict[str, str], run_id: str | None = None) -> Any:
        run_id = run_id or client.create_run(experiment).info.run_id
        model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
        client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=0)])
        folder = write(tmp_path / model.model_id, {"MLmodel": "flavors: {}\n", **files})
        client.log_model_artifacts(model.model_id, str(folder))
        return client.finalize_logged_model(model.model_id, "READY")

    return logged


@pytest.fixture
def registered(client: MlflowClient, log: Logs) -> Callable[..., str]:
    """Registers a version with these files as artifacts. Returns its URI."""

    def version_of(name: str, files: dict[str, str] | None = None) -> str:
        model = log(PARTS if files is None else files)
        return new_version(client, name, model.model_uri, model.source_run_id)

    return version_of


def new_version(client: MlflowClient, name: str, source: str, run_id: str | None = None) -> str:
    if name not in [model.name for model in client.search_registered_models()]:
        client.create_registered_model(name)
    return f"models:/{name}/{client.create_model_version(name, source, run_id).version}"


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def pull(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Candidate]:
    """Pulls with nothing but the tracking URI."""

    def pulled(uri: str) -> Candidate:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
            return registry.pull(uri, tmp_path_factory.mktemp("pulled"), tracking)

    return pulled


def report_on(candidate: Candidate, *, approved: bool = True) -> Report:
    """The smallest valid report: one check, one figure, one limit."""
    figure = Measurement(metric="auc", subject="loss", value=0.5, low=0.49, high=0.51, confidence=0.95)
    finding = judge("membership", figure, Limit(max=0.6 if approved else 0.4))
    decided = verdict([finding])
    columns = ("uri", "name", "version", "alias", "run_id", "model_id", "digest")
    names = ("members", "holdout", "population", "classes", "fewest_members_per_class")
    sizes: dict[str, Any] = dict.fromkeys(names, 9)
    return Report(
        created="2030-01-01T12:00:00+00:00",
        tool="privacy-gate",
        versions={},
        candidate=CandidateRecord(**{column: getattr(candidate, column) for column in columns}),
        policy=PolicyRecord(
            name="test", version=1, source="policy.yaml", sha256="cd" * 32, recorded="2030-01-01T12:00:00+00:00",
            release_context="api", confidence=0.95, alias="champion",
        ),
        recipe=candidate.recipe,
        data=DataRecord(sha256="ab" * 32, median_members_per_class=9.0, **sizes),
        checks=(CheckRecord(check="membership", settings={}, result=CheckResult(measurements=(figure,))),),
        findings=(finding,),
        verdict=decided,
        exit_code=decided.exit_code,
        threat_model=(),
        not_tested=(),
    )  # fmt: skip


# Pulling candidates


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/absent/1", "/mlflow.db: Model Version (name=absent, version=1) not found; correct the name, or"),
        ("models:/absent@champion", "/mlflow.db: Registered Model with name=absent not found; correct the name, or"),
        ("models:/present/99", "version=99"),
        ("models:/present@winner", "model present has no alias 'winner'; it has: champion, old"),
        ("models:/lonely@champion", "model lonely has no alias 'champion'; it has: none"),
    ],
)
def test_what_is_not_in_the_registry_is_a_configuration_error(
    uri: str, expected: str, client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    registered("present")
    registered("lonely")
    for alias in ("old", "champion"):
        client.set_registered_model_alias("present", alias, "1")
    with pytest.raises(ConfigurationError) as caught:
        pull(uri)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "uri",
    ["models:/x/Production", "models:/x/latest", "models:/x/-1", "models:/x/1/", "models:/x", "models:/x@", "models:/",
     "models:/x/1\n", "runs:/0/model", "./model", "/etc/passwd", "https://host/x", "",
     *(f"models:/{name}/1" for name in UNPRINTABLE)],
)  # fmt: skip
def test_a_uri_of_another_form_is_refused_before_anybody_is_asked(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="write models:/NAME/VERSION or models:/NAME@ALIAS") as caught:
        registry.pull(uri, tmp_path, "http://127.0.0.1:9")
    assert str(caught.value).isprintable()


def test_a_pinned_version_comes_with_private_bytes_their_digest_and_its_dossier(
    client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    uri = registered("whole")
    client.set_registered_model_alias("whole", "candidate", "1")
    entry = client.get_model_version("whole", "1")
    client.log_metric(str(entry.run_id), "holdout_accuracy", 0.75)
    found, by_alias = pull(uri), pull("models:/whole@candidate")
    private = next(folder for folder in (found.folder, *found.folder.parents) if folder.name == "artifact")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    stored = client.get_model_version_download_uri("whole", "1")
    assert found.digest == artifact_digest(Path(stored.removeprefix("file://")))
    assert (found.name, found.version, found.alias, by_alias.alias) == ("whole", "1", None, "candidate")
    assert (found.dossier.recipe, found.dossier.data) == (RECIPE, DATA)
    assert found.digest == by_alias.digest == artifact_digest(found.folder)
    assert found.logged == {"holdout_accuracy": 0.75}
    assert (found.run_id, found.model_id) == (entry.run_id, registry.model_id_of(entry))


@pytest.mark.parametrize("missing", ["recipe", "data"])
def test_a_missing_dossier_says_how_to_attach_one(
    missing: str, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    files = {name: text for name, text in PARTS.items() if missing not in name}
    with pytest.raises(
        CandidateError, match=rf"no privacy_gate/{missing}.yaml .* privacy_gate.log_dossier\("
    ) as caught:
        pull(registered("bare", files))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("part", "text", "expected"),
    [
        ("recipe", dump(RECIPE) + "epoch: 3\n", "recipe.yaml:LAST:1: epoch: unknown key; did you mean 'epochs'?"),
        ("recipe", dump(RECIPE) + "classes: 3\n", "recipe.yaml:LAST:1: key 'classes' is repeated"),
        ("recipe", "!!python/object/apply:os.system [id]", "recipe.yaml:1:1: tag"),
        ("recipe", "", "recipe.yaml:1:1: the file is empty"),
        ("recipe", "#" * 1_100_000, "recipe.yaml:1:1: file is larger than"),
        ("data", "table: 3\n", "data.yaml:1:8: table"),
    ],
)
def test_a_faulty_dossier_is_refused_at_line_and_column(
    part: str, text: str, expected: str, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    with pytest.raises(CandidateError) as caught:
        pull(registered("faulty", {**PARTS, f"privacy_gate/{part}.yaml": text}))
    assert expected.replace("LAST", str(text.count("\n"))) in str(caught.value)


def test_a_dossier_that_is_no_text_a_folder_or_twice_there_is_refused(
    client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate], tmp_path: Path
) -> None:
    with pytest.raises(CandidateError, match=r"2 dossiers among its artifacts \(other/privacy_gate/recipe.yaml, "):
        pull(registered("twice", {**PARTS, "other/privacy_gate/recipe.yaml": dump(RECIPE)}))
    with pytest.raises(CandidateError, match=r"no privacy_gate/recipe.yaml"):
        pull(registered("folder", {"privacy_gate/recipe.yaml/data.txt": "x"}))
    uri = registered("binary")
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    model_id = registry.model_id_of(client.get_model_version("binary", "1"))
    client.log_model_artifact(str(model_id), str(tmp_path / "recipe.yaml"), "privacy_gate")
    with pytest.raises(CandidateError, match=r"recipe.yaml is not UTF-8 text"):
        pull(uri)


@pytest.mark.parametrize("target", ["/etc/hostname", "MLmodel", "privacy_gate", "nowhere"])
def test_a_link_among_the_artifacts_is_refused_wherever_it_points(
    target: str, client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    uri = registered("linked")
    location = client.get_model_version_download_uri("linked", uri.rsplit("/", 1)[1])
    (Path(location.removeprefix("file://")) / "link").symlink_to(target)
    with pytest.raises(CandidateError, match="symbolic link, 'link'") as caught:
        pull(uri)
    assert caught.value.exit_code == 5


def test_a_version_whose_files_are_gone_or_whose_run_is_deleted(
    client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    uri = registered("orphan")
    client.delete_run(str(client.get_model_version("orphan", "1").run_id))
    assert pull(uri).dossier.recipe == RECIPE
    folder = Path(client.get_model_version_download_uri("orphan", "1").removeprefix("file://"))
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(GateError) as caught:
        pull(uri)
    assert caught.value.exit_code in (2, 5, 6)
    assert "orphan" in str(caught.value) or "no files" in str(caught.value)


# Names and tags chosen by strangers


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_travels_through_pull_promote_and_the_command_as_plain_text(
    name: str, client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate], tracking: str
) -> None:
    candidate = pull(registered(name))
    client.set_model_version_tag(name, "1", "a: b", "\x1b[31m\n::error::value")
    text = report_on(candidate).model_dump_json()
    Path("report.json").write_text(text)
    arguments = ["promote", "report.json", "--tracking-uri", tracking]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"tag privacy_gate.verdict=approved on version 1 of {name}" in done.stdout
    assert aliases(client, name) == {"champion": "1"}
    assert plain(done.output)
    shown = CliRunner().invoke(app, ["report", "report.json"])
    assert shown.exit_code == 0
    assert plain(shown.output)
    assert not any(line.startswith("::") for line in (done.output + shown.output).splitlines())


def plain(text: str) -> bool:
    return all(unicodedata.category(character) not in ("Cc", "Cf") for character in text.replace("\n", ""))


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_an_unprintable_name_is_one_clear_error_in_one_line(
    name: str, registered: Callable[..., str], tracking: str
) -> None:
    uri = registered(name)
    Path("policy.yaml").write_text(
        "{name: p, version: 1, release_context: api, "
        "checks: [{check: membership, references: 16, attacks: [loss], limits: {auc: {max: 0.6}}}]}"
    )
    done = CliRunner().invoke(app, ["check", uri, "--policy", "policy.yaml", "--tracking-uri", tracking])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "in printable characters" in done.stderr
    assert plain(done.stderr)


def test_a_forged_report_prints_no_line_of_its_own(
    client: MlflowClient, registered: Callable[..., str], pull: Callable[[str], Candidate], tracking: str
) -> None:
    honest = report_on(pull(registered("honest"))).model_dump_json()
    client.create_registered_model("three\nlines")
    for name in ("three\nlines", "absent\n::error::\x1b[31m"):
        Path("report.json").write_text(honest.replace('"name":"honest"', f'"name":{json.dumps(name)}'))
        done = CliRunner().invoke(app, ["promote", "report.json", "--dry-run", "--tracking-uri", tracking])
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert plain(done.stderr.replace("\N{REPLACEMENT CHARACTER}", ""))


# Registries that do not answer


@pytest.mark.parametrize(
    "tracking_uri",
    [
        "http://me:hunter2@127.0.0.1:9",
        "http://127.0.0.1:99999",
        "sqlite:///broken.db",
        "postgresql+nonsense://me:hunter2@host/x",
    ],
)
def test_a_registry_that_does_not_answer_is_named_soon(tracking_uri: str, tmp_path: Path) -> None:
    Path("broken.db").write_text("no database " * 100)
    begun = time.monotonic()
    with pytest.raises(RegistryError, match=r"cannot read models:/x/1 in \S+: .* then try again") as caught:
        registry.pull("models:/x/1", tmp_path, tracking_uri)
    assert time.monotonic() - begun < 20
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("tracking_uri", ["nonsense://x", "http://[bad"])
def test_what_is_no_tracking_uri_is_a_configuration_error(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        registry.pull("models:/x/1", tmp_path, tracking_uri)
    assert "nonsense" in str(caught.value) or "bad" in str(caught.value)


def test_no_empty_registry_is_made_of_a_misspelt_one(
    tmp_path: Path, registered: Callable[..., str], pull: Callable[[str], Candidate]
) -> None:
    absent, report = tmp_path / "not there" / "mlflow.db", report_on(pull(registered("here")))
    uri = f"sqlite:///{absent}?timeout=5"
    with pytest.raises(ConfigurationError, match="no such database; name the MLflow server or database with"):
        registry.pull("models:/x/1", tmp_path, uri)
    with pytest.raises(ConfigurationError, match="no such database"):
        promotion.promote(report, alias="champion", artifacts={}, tracking_uri=uri)
    with pytest.raises(ConfigurationError, match="no such database"):
        promotion.record(report, artifacts={}, tracking_uri=uri)
    assert not absent.parent.exists()


@pytest.mark.slow
def test_mlflow_says_nothing_of_its_own_and_leaves_the_environment_alone(tmp_path: Path) -> None:
    script = (
        "import os, sys, torch; from pathlib import Path; from privacy_gate.registry import producer, pull\n"
        "from privacy_gate.dossier.recipe import Recipe; from privacy_gate.dossier.dataset import DataManifest\n"
        "from privacy_gate.documents import load; from privacy_gate.errors import GateError\n"
        "before = dict(os.environ)\n"
        "recipe = load(Path('privacy_gate/recipe.yaml').read_text(), Recipe, 'r')\n"
        "data = load(Path('privacy_gate/data.yaml').read_text(), DataManifest, 'd')\n"
        "uri = producer.register(torch.nn.Linear(2, 5), 'quiet', recipe, data, {'x': 1.0}, 'sqlite:///fresh.db')\n"
        "pull.pull(uri, Path('.'), 'sqlite:///fresh.db')\n"
        "for missing, where in (('models:/absent/1', 'sqlite:///fresh.db'), (uri, 'http://127.0.0.1:9')):\n"
        "    try: pull.pull(missing, Path('.'), where)\n"
        "    except GateError as error: pass\n"
        "    else: raise SystemExit('found')\n"
        "assert dict(os.environ) == before, set(os.environ) ^ set(before)\n"
    )
    write(tmp_path, PARTS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Attaching dossiers


def test_a_dossier_is_attached_to_whatever_names_one_logged_model(
    client: MlflowClient, log: Logs, registered: Callable[..., str], pull: Callable[[str], Candidate], tracking: str
) -> None:
    def by_version(model: Any) -> Any:
        return new_version(client, "attached", model.model_uri, model.source_run_id)

    def by_alias(model: Any) -> str:
        client.set_registered_model_alias("attached", "newest", by_version(model).rsplit("/", 1)[1])
        return "models:/attached@newest"

    names: list[Callable[[Any], Any]] = [
        lambda model: SimpleNamespace(model_id=model.model_id),  # as a ModelInfo has it
        lambda model: model,
        lambda model: model.model_uri,
        lambda model: model.source_run_id,
        lambda model: client.get_run(model.source_run_id),
        by_version,
        lambda model: client.get_model_version("attached", by_version(model).rsplit("/", 1)[1]),
        by_alias,
    ]
    for named in names:
        model = log({})
        producer.log_dossier(named(model), RECIPE, DATA, tracking)
        assert pull(by_version(model)).dossier.data == DATA


def test_a_run_with_no_model_or_several_does_not_say_which_is_meant(
    client: MlflowClient, experiment: str, log: Logs, tracking: str
) -> None:
    run_id = client.create_run(experiment).info.run_id
    with pytest.raises(ConfigurationError, match=rf"run {run_id} logged 0 models \(none\)"):
        producer.log_dossier(run_id, RECIPE, DATA, tracking)
    models = sorted(log({}, run_id).model_id for _ in range(2))
    expected = ", ".join(f"models:/{model}" for model in models)
    with pytest.raises(ConfigurationError, match=rf"logged 2 models \({expected}\); pass one model instead"):
        producer.log_dossier(client.get_run(run_id), RECIPE, DATA, tracking)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("0" * 32, "0" * 32),
        ("models:/m-absent", "m-absent"),
        ("models:/absent/1", "absent"),
        ("model", "write models:/NAME/VERSION or a run's id"),
        (None, "NoneType: pass what log_model returned"),
        (7, "int: pass what log_model returned"),
    ],
)
def test_a_dossier_for_nothing_known_is_a_configuration_error(model: Any, expected: str, tracking: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        producer.log_dossier(model, RECIPE, DATA, tracking)


def test_recipe_and_data_are_records_mappings_or_files(
    log: Logs, client: MlflowClient, pull: Callable[[str], Candidate], tracking: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "written", PARTS) / "privacy_gate"
    model = log({})
    uri = new_version(client, "given", model.model_uri)
    digests = set()
    for recipe, data in (
        (RECIPE, DATA),
        (RECIPE.model_dump(mode="json"), DATA.model_dump(mode="json", exclude_none=True)),
        (folder / "recipe.yaml", folder / "data.yaml"),
        (str(folder / "recipe.yaml"), DATA),
    ):
        producer.log_dossier(model, recipe, data, tracking)
        candidate = pull(uri)
        assert candidate.dossier.recipe == RECIPE
        digests.add(candidate.digest)
    assert len(digests) == 1  # every form of the same dossier gives the same bytes
    with pytest.raises(ConfigurationError, match=r"absent.yaml: cannot be read"):
        producer.log_dossier(model, "absent.yaml", DATA, tracking)
    with pytest.raises(ConfigurationError, match=r"recipe:\d+:1: epoch: unknown key"):
        producer.log_dossier(model, {**RECIPE.model_dump(mode="json"), "epoch": 1}, DATA, tracking)
    (folder / "recipe.yaml").write_text("classes: 5\nclasses: 6\n")
    with pytest.raises(ConfigurationError, match=r"recipe.yaml:2:1: key 'classes' is repeated"):
        producer.log_dossier(model, folder / "recipe.yaml", DATA, tracking)


def test_a_claim_travels_with_the_dossier_and_a_wrong_one_is_refused(
    log: Logs, client: MlflowClient, pull: Callable[[str], Candidate], tracking: str
) -> None:
    model = log({})
    uri = new_version(client, "claimed", model.model_uri)
    producer.log_dossier(model, RECIPE, DATA, tracking, claim={"epsilon": 3.0, "delta": 1e-5})
    assert pull(uri).dossier.claim == Claim(epsilon=3.0, delta=1e-5)
    with pytest.raises(ConfigurationError, match="epsilon"):
        producer.log_dossier(model, RECIPE, DATA, tracking, claim={"epsilon": -1.0, "delta": 1e-5})


@pytest.mark.parametrize("absolute", [False, True], ids=["runs-uri", "absolute-source"])
def test_a_version_of_plain_run_artifacts_takes_a_dossier_and_is_pulled(
    absolute: bool,
    client: MlflowClient,
    experiment: str,
    pull: Callable[[str], Candidate],
    tracking: str,
    tmp_path: Path,
) -> None:
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(write(tmp_path / "plain", {"weights.txt": "w"})), "some/model")
    root = run.info.artifact_uri if absolute else f"runs:/{run.info.run_id}"
    uri = new_version(client, f"plain-{absolute}", f"{root}/some/model", run.info.run_id)
    producer.log_dossier(uri, RECIPE, DATA, tracking)
    candidate = pull(uri)
    assert candidate.dossier.recipe == RECIPE
    assert candidate.model_id is None
    promotion.record(report_on(candidate, approved=False), artifacts={"report.json": b"{}"}, tracking_uri=tracking)
    assert client.get_run(run.info.run_id).data.metrics["privacy_gate/membership.loss.auc"] == 0.5


def test_artifacts_outside_mlflow_take_no_dossier(client: MlflowClient, tracking: str, tmp_path: Path) -> None:
    uri = new_version(client, "outside", str(write(tmp_path / "outside", {"weights.txt": "w"})))
    with pytest.raises(ConfigurationError, match="version 1 of outside: its artifacts are outside MLflow"):
        producer.log_dossier(uri, RECIPE, DATA, tracking)


def test_a_copied_version_keeps_bytes_digest_and_dossier_and_is_judged_by_its_own_alias(
    client: MlflowClient, log: Logs, pull: Callable[[str], Candidate], tracking: str
) -> None:
    model = log({})
    original = new_version(client, "m-original", model.model_uri, model.source_run_id)
    client.copy_model_version(original, "copied")
    producer.log_dossier("models:/copied/1", RECIPE, DATA, tracking)
    before, after = pull(original), pull("models:/copied/1")
    assert (before.digest, before.dossier) == (after.digest, after.dossier)
    promotion.promote(report_on(after), alias="champion", artifacts={}, tracking_uri=tracking)
    assert aliases(client, "copied") == {"champion": "1"}
    assert aliases(client, "m-original") == {}


# Writing decisions


@pytest.fixture
def candidate(registered: Callable[..., str], pull: Callable[[str], Candidate], request: Any) -> Candidate:
    """Version 2 of a model with two versions, named after the test."""
    name = request.node.originalname[:100]
    registered(name)
    return pull(registered(name))


@pytest.mark.parametrize(
    ("alias", "expected"),
    [("latest", "not latest or vN"), ("LATEST", "not latest"), ("v3", "not latest"), ("V12", "not latest"),
     ("two words", "use letters"), ("", "use letters"), ("a\n", "use letters"), ("é", "use letters"),
     ("a" * 256, "at most 255")],
)  # fmt: skip
def test_a_reserved_or_impossible_alias_is_refused_before_anything_is_written(
    alias: str, expected: str, client: MlflowClient, candidate: Candidate, tracking: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        promotion.promote(report_on(candidate), alias=alias, artifacts={}, tracking_uri=tracking)
    assert client.get_model_version(candidate.name, candidate.version).tags == {}


def test_expect_current_lets_the_alias_move_only_from_where_it_was_expected(
    client: MlflowClient, candidate: Candidate, tracking: str
) -> None:
    def promote(expect: str | None) -> promotion.Promotion:
        return promotion.promote(
            report_on(candidate), alias="champion", expect_current=expect, artifacts={}, tracking_uri=tracking
        )

    name = candidate.name
    with pytest.raises(ConflictError, match="alias champion is at none, expected 1: find out who moved it") as caught:
        promote("1")
    assert caught.value.exit_code == 7
    assert client.get_model_version(name, "2").tags == {}
    done = promote("none")
    assert (done.before, done.after, done.steps[-1]) == (None, "2", "wrote: alias champion: none -> 2")
    assert promote("1").before == "2"  # the alias is already there: a retried job is not a conflict
    client.set_registered_model_alias(name, "champion", "1")
    with pytest.raises(ConflictError, match="alias champion is at 1, expected none"):
        promote("none")
    assert promote("1").after == "2"
    client.set_registered_model_alias(name, "champion", "1")
    assert promote(None).before == "1"
    assert aliases(client, name) == {"champion": "2"}


def test_a_judged_alias_that_moved_on_is_a_conflict_even_if_it_is_the_one_to_move(
    client: MlflowClient, candidate: Candidate, pull: Callable[[str], Candidate], tracking: str
) -> None:
    client.set_registered_model_alias(candidate.name, "champion", "1")
    judged = report_on(pull(f"models:/{candidate.name}@champion"))
    client.set_registered_model_alias(candidate.name, "champion", "2")
    with pytest.raises(ConflictError, match="alias champion was judged at version 1 and is now at 2"):
        promotion.promote(judged, alias="champion", artifacts={}, tracking_uri=tracking)
    assert aliases(client, candidate.name) == {"champion": "2"}


@pytest.fixture
def rival(tracking: str, candidate: Candidate) -> Iterator[None]:
    """A database trigger that moves every alias of the model back to version 1 as soon as it is set."""
    with sqlite3.connect(tracking.removeprefix("sqlite:///")) as database:
        database.execute(
            "create trigger rival after insert on registered_model_aliases "
            f"when new.name = '{candidate.name}' and new.version = 2 "
            "begin update registered_model_aliases set version = 1 where name = new.name; end"
        )
    yield
    with sqlite3.connect(tracking.removeprefix("sqlite:///")) as database:
        database.execute("drop trigger rival")


@pytest.mark.usefixtures("rival")
def test_an_alias_that_reads_back_another_version_is_a_conflict(
    client: MlflowClient, candidate: Candidate, tracking: str
) -> None:
    with pytest.raises(ConflictError, match="alias champion reads back 1, expected 2: another process moved it"):
        promotion.promote(report_on(candidate), alias="champion", artifacts={}, tracking_uri=tracking)
    assert aliases(client, candidate.name) == {"champion": "1"}


def test_only_an_approving_report_promotes_and_a_dry_run_writes_nothing(
    client: MlflowClient, candidate: Candidate, tracking: str
) -> None:
    blocked = report_on(candidate, approved=False)
    with pytest.raises(ConfigurationError, match="the verdict is blocked: only an approved report promotes"):
        promotion.promote(blocked, alias="champion", artifacts={}, tracking_uri=tracking)
    files = {"report.json": b"{}"}
    dry = promotion.record(blocked, dry_run=True, artifacts=files, tracking_uri=tracking)
    assert client.get_model_version(candidate.name, "2").tags == {}
    wet = promotion.record(blocked, artifacts=files, tracking_uri=tracking)
    assert [step.removeprefix("would write: ") for step in dry.steps] == [
        step.removeprefix("wrote: ") for step in wet.steps
    ]
    tags = client.get_model_version(candidate.name, "2").tags
    assert tags["privacy_gate.verdict"] == "blocked"
    assert tags["privacy_gate.digest"] == candidate.digest
    assert aliases(client, candidate.name) == {}
    logged = client.list_artifacts(str(candidate.run_id), f"privacy_gate/{candidate.digest[:12]}")
    assert [Path(file.path).name for file in logged] == ["report.json"]


def test_a_version_that_is_gone_is_a_configuration_error(
    client: MlflowClient, candidate: Candidate, tracking: str
) -> None:
    client.delete_model_version(candidate.name, "2")
    for act in (promotion.record, lambda *a, **k: promotion.promote(*a, alias="champion", **k)):
        with pytest.raises(ConfigurationError, match="version"):
            act(report_on(candidate), artifacts={}, tracking_uri=tracking)
    assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") is None
