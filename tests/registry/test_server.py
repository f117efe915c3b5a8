"""A whole pass against a real MLflow server over HTTP, with artifacts through the server's proxy."""

import datetime
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privacy_gate.compute.machine.device import Machine
from privacy_gate.errors import RegistryError
from privacy_gate.gate import steps as gate
from privacy_gate.gate.case import Request
from privacy_gate.progress import silent
from privacy_gate.registry import producer
from privacy_gate.registry import pull as registry
from privacy_gate.verdict.judgement import Verdict
from privacy_gate.verdict.report import Report
from privacy_gate.weights import artifact_digest
from tests.policies import MEMBERSHIP

pytestmark = pytest.mark.slow

NOW = datetime.datetime(2030, 1, 1, 12, 0, tzinfo=datetime.UTC)


class Server:
    """`mlflow server` on a free port of the loopback, in its own process group."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"),
        ]
        # Without the server's background jobs and telemetry, which would slow the test down.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true"}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, seconds: float = 90) -> None:
        """Returns once /health answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        pytest.fail(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Ends the whole process group, since the server's workers are its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    try:
        found.wait()
        yield found
    finally:
        found.stop()


def test_a_server_serves_the_whole_pass_and_its_absence_is_exit_code_6(
    server: Server, scenes: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(MEMBERSHIP)
    before = settings()
    client = registry.client_of(server.uri)

    leaking = scenes(folder(tmp_path / "leaking"))
    report = check(register(leaking, "leaking", server.uri), server.uri, tmp_path)
    assert report.verdict is Verdict.BLOCKED
    gate.decide(report, tmp_path / "report", tracking_uri=server.uri, expect_current=None, dry_run=False)
    entry = client.get_model_version("leaking", "1")
    assert entry.tags["privacy_gate.verdict"] == "blocked"
    assert client.get_registered_model("leaking").aliases == {}
    assert "privacy_gate/membership.lira.tpr_at_0.01_fpr" in client.get_run(str(entry.run_id)).data.metrics
    stored = list((tmp_path / "artifacts").glob(f"*/models/{report.candidate.model_id}/artifacts"))
    assert [artifact_digest(path) for path in stored] == [report.candidate.digest]

    careful = scenes(folder(tmp_path / "careful"), members=1000, features=16, epochs=1, lr=0.01)
    report = check(register(careful, "careful", server.uri), server.uri, tmp_path)
    assert report.verdict is Verdict.APPROVED, report.reasons
    gate.decide(report, tmp_path / "report", tracking_uri=server.uri, expect_current="none", dry_run=False)
    assert {alias: str(at) for alias, at in client.get_registered_model("careful").aliases.items()} == {"champion": "1"}
    files = client.list_artifacts(str(report.candidate.run_id), f"privacy_gate/{report.candidate.digest[:12]}")
    assert [Path(file.path).name for file in files] == ["report.html", "report.json", "report.md"]
    pulled = registry.pull("models:/careful@champion", folder(tmp_path / "pulled"), server.uri)
    assert (pulled.version, pulled.digest) == ("1", report.candidate.digest)
    assert settings() == before

    server.stop()
    begun = time.monotonic()
    with pytest.raises(RegistryError, match="cannot promote version 1 of careful") as caught:
        gate.decide(report, tmp_path / "report", tracking_uri=server.uri, expect_current=None, dry_run=False)
    assert caught.value.exit_code == 6
    assert time.monotonic() - begun < 20
    assert capfd.readouterr() == ("", "")


def settings() -> dict[str, str]:
    """MLflow's environment variables, which would affect everything else in the process."""
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def register(scene: Any, name: str, tracking: str) -> str:
    model = scene.train(scene.member_rows)
    accuracy = scene.accuracy(model, scene.holdout_rows)
    return producer.register(model, name, scene.recipe, scene.manifest, {"holdout_accuracy": accuracy}, tracking)


def check(uri: str, tracking: str, folder: Path) -> Report:
    report, *_ = gate.check(
        Request(uri, folder / "policy.yaml", str(folder / "store"), tracking),
        output=folder / "report",
        machine=Machine(threads=1),
        now=NOW,
        progress=silent,
    )
    return report
