"""The command line: quick help, one clear error, the right exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privacy_gate.cli import app
from privacy_gate.cli.options import chosen_machine
from privacy_gate.cli.steps import price
from privacy_gate.cli.terminal import progress_bar
from privacy_gate.compute.cluster import Cluster
from privacy_gate.compute.machine.device import Machine
from privacy_gate.gate.preparation import Prepared
from privacy_gate.registry import producer

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ["check"], ["prepare"], ["audit"], ["report"], ["promote"], ["advise"], ["demo"], ["attacks"],
    ["dossier"], ["dossier", "lint"], ["policy"], ["policy", "lint"],
    ["store"], ["store", "list"], ["store", "prune"], ["store", "verify"], ["store", "merge"],
]  # fmt: skip


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    code, text = invoke(*command, "--help")
    assert code == 0
    if command not in (["dossier"], ["policy"], ["store"]):
        assert f"Example: privacy-gate {' '.join(command)}" in " ".join(text.split())


HEAVY = ("torch", "mlflow", "numpy", "scipy", "pyarrow", "PIL", "jinja2", "fsspec", "timm")


def test_help_imports_nothing_heavy() -> None:
    # How long help takes is measured by tests/bench/startup.py; on a busy machine a test cannot ask for it.
    script = (
        "import sys\n"
        "from privacy_gate.cli import app\n"
        "try: app(['check', '--help'])\n"
        "except SystemExit: pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_policy_lint_names_the_limits_that_the_holdout_cannot_resolve() -> None:
    code, text = invoke("policy", "lint", str(ROOT / "policies" / "strict.yaml"), "--holdout", "2000")
    assert code == 0
    assert "tpr_at_0.001_fpr needs at least 10,000 holdout rows to meet its limit: with your 2,000 no model can" in text


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("[{check: utility, limits: {holdout_accuracy: {min: '0.8'}}}]", "4:60: checks.0.limits.holdout_accuracy.min: "
         "Input should be a valid number (found \"0.8\")"),
        ("[{check: utility, limits: {holdout_accuracy: {min: 80}}}]", "4:60: checks.0: limits: holdout_accuracy: min "
         "80 is outside -1 to 1: write 0.8 for 80 %"),
        ("[{check: membership, attacks: [lirra]}]", "4:39: checks.0.attacks: no attack is called 'lirra'; did you mean "
         "'lira'?"),
        ("[]", "4:9: checks: Tuple should have at least 1 item after validation, not 0"),
    ],
)  # fmt: skip
def test_one_mistake_in_a_policy_of_one_check_is_one_error(checks: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"name: house\nversion: 1\nrelease_context: api\nchecks: {checks}\n")
    assert invoke("policy", "lint", str(path)) == (2, f"privacy-gate: {path}:{expected}\n")


def test_policy_lint_audit_and_report_do_not_import_torch() -> None:
    script = (
        "import sys\n"
        "from privacy_gate import reports\nfrom privacy_gate.auditing import audit\n"
        "from privacy_gate.gate import lint\n"
        "print([m for m in ('torch', 'mlflow', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["policy", "lint", "absent.yaml"], 2, "absent.yaml: No such file or directory; name a policy file"),
        (["report", "absent.json"], 2, "absent.json: No such file or directory; name a report.json"),
        (["check", "models:/x/1", "--policy", "absent.yaml"], 2, "absent.yaml: No such file or directory"),
        (["check", "models:/x/1"], 2, "Missing option '--policy'"),
        (["prepare", "models:/x/1", "--policy", "p", "--shard", "0/2"], 2, "1 <= i <= n"),
        (["prepare", "models:/x/1", "--policy", "p", "--shard", "two"], 2, "write i/n, for instance 2/4"),
        (["check", "models:/x/1", "-p", "p", "--engine", "ray", "--ray-address", "x"], 2, "write ray://host:port"),
        (["prepare", "models:/x/1", "--policy", "p", "--engine", "slurm"], 2, "'slurm' is not one of 'local', 'ray'"),
        (["store", "prune", "--older-than", "30"], 2, "--older-than 30: write a number of hours, days or weeks"),
        (["store", "list", "--store", "absent"], 2, "store absent: no such store; name one that `prepare`"),
        (["store", "verify", "--store", "absent"], 2, "store absent: no such store"),
        (["store", "prune", "--store", "absent"], 2, "store absent: no such store"),
        (["store", "merge", "absent", "--into", "all"], 2, "store absent: no such store"),
        (
            ["prepare", "models:/x/1", "-p", "p", "--gpus-per-task", "1"],
            2,
            "applies to Ray tasks only; add --engine ray",
        ),
        (
            ["check", "models:/x/1", "-p", "p", "--device", "gpu"],
            2,
            "--device gpu: unknown device; use auto, cpu, cuda or",
        ),
        (["dossier", "lint", "absent"], 2, "absent/recipe.yaml: No such file or directory"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(
    arguments: list[str], code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, text = invoke(*arguments)
    assert found == code
    assert expected in " ".join(text.replace("│", " ").split())
    assert "Traceback" not in text


def test_a_report_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"verdict": "approved"}))
    code, text = invoke("report", str(path))
    assert code == 2
    assert "not a valid report: created: Field required; name a report.json" in " ".join(text.split())
    path.write_text("House")
    assert "not a valid report: Invalid JSON: expected value at line 1 column 1; name" in invoke("report", str(path))[1]


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    code, text = invoke("report", str(tmp_path / "report.json"), "--format", "htm")
    assert code == 2
    assert "did you mean 'html'?" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "cancelled by CI"])
def test_an_interrupt_exits_with_130(number: signal.Signals, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    os.mkfifo(policy)  # reading it waits for a writer
    # If tests run in the background, interrupts are ignored, and child processes inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{heed}; import sys; from privacy_gate.cli import main; sys.argv[0] = 'privacy-gate'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "policy", "lint", str(policy)], stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        try:
            writer = os.open(policy, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # the process has not opened it yet
            time.sleep(0.05)
    time.sleep(0.5)  # a signal between opening and reading would only be handled after the read
    process.send_signal(number)
    _, complaint = process.communicate(timeout=20)
    os.close(writer)
    assert process.returncode == 130
    assert "run the same command to continue" in complaint


def test_too_little_memory_exits_with_6(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    with policy.open("wb") as file:
        file.truncate(64 << 30)  # takes no room on disk
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))"
    script = f"{limit}; import sys; from privacy_gate.cli import main; sys.argv[0] = 'privacy-gate'; main()"
    run = [sys.executable, "-c", script, "policy", "lint", str(policy)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.startswith("privacy-gate: out of memory: ")


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(
    scene: Any, tracking: str, tmp_path: Path
) -> None:
    producer.register(scene.train(scene.member_rows), "unwritten", scene.recipe, scene.manifest, {}, tracking)
    (tmp_path / "file").write_text("in the way")
    text = "{name: p, version: 1, release_context: api, checks: [{check: membership, references: 16, attacks: [lira]}]}"
    (tmp_path / "policy.yaml").write_text(text)
    where = ["models:/unwritten/1", "--policy", "policy.yaml", "--tracking-uri", tracking, "--device", "cpu"]
    for command in ("check", "advise"):
        code, said = invoke(command, *where, "--output", "file")
        assert (code, said) == (2, "privacy-gate: file: File exists; name a folder that can be written\n")
    assert not list(Path("privacy-gate-store").rglob("*.safetensors"))
    code, said = invoke("prepare", *where, "--store", "file")
    assert code == 6
    assert "name a folder or bucket that can be written with --store" in said


def test_gpus_that_stay_idle_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    machine = chosen_machine("auto", None)
    assert machine.gpus() == 1
    assert "3 more GPUs are idle: --engine ray --gpus-per-task 1" in capsys.readouterr().err
    for device, engine in (("auto", "ray"), ("cpu", "local"), ("cuda:1", "local")):
        chosen_machine(device, None, engine)
    assert capsys.readouterr().err == ""


def test_the_price_is_in_gpu_seconds_if_a_local_gpu_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    done, machine = Prepared(30, 4, 12.4), Machine()
    assert price(done, Machine(device="cpu"), None) == "30 jobs computed, 4 were stored already; 12 s"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert price(done, machine, None) == "30 jobs computed, 4 were stored already; 12 GPU-seconds"
    assert price(done, machine, Cluster(gpus_per_task=1)) == "30 jobs computed, 4 were stored already; 12 s"


def test_check_and_prepare_print_the_computed_jobs_and_exclude_the_time_of_pulling(
    scene: Any, tracking: str, tmp_path: Path
) -> None:
    producer.register(scene.train(scene.member_rows), "priced", scene.recipe, scene.manifest, {}, tracking)
    text = "{name: p, version: 1, release_context: api, checks: [{check: membership, references: 16, attacks: [lira]}]}"
    (tmp_path / "policy.yaml").write_text(text)
    where = ["models:/priced/1", "--policy", "policy.yaml", "--tracking-uri", tracking, "--device", "cpu"]
    code, output = invoke("check", *where, "--no-promote")
    assert code in (3, 4)
    assert re.search(r"^18 jobs computed, 0 were stored already; \d+ s$", output, re.MULTILINE)
    assert invoke("prepare", *where) == (0, "0 jobs computed, 18 were stored already; 0 s\n")


def test_the_bar_says_how_fast_work_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("CI", raising=False)
    with progress_bar() as progress:
        for done in range(6):
            progress("train references", done, 6)
            time.sleep(0.06)
    shown = capsys.readouterr().err
    assert "train references" in shown
    assert "/s" in shown
