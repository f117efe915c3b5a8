"""Tables, stores and shards on an S3 service: a real client (s3fs) against a server on the loopback."""

import datetime
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from privacy_gate.cli import app
from privacy_gate.dossier.dataset import Columns, describe_table
from privacy_gate.errors import StoreError
from privacy_gate.registry import producer
from privacy_gate.store import shelf
from privacy_gate.store.place import Place
from tests.policies import MEMBERSHIP

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket. Its server ends with the test."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()  # a client remembers its server
    name = f"gate-{uuid.uuid4().hex}"  # servers in one process share their buckets
    kind().mkdir(name)
    yield f"s3://{name}"
    kind.clear_instance_cache()
    server.stop()


def test_an_object_is_written_whole_replaced_on_demand_listed_and_deleted(bucket: str) -> None:
    place = Place(f"{bucket}/store")
    assert not place.exists()
    assert (place.holds("a/x"), place.read("a/x"), list(place.walk())) == (False, None, [])
    place.write("a/x", b"first")
    place.write("a/x", b"second")
    assert place.read("a/x") == b"first"
    place.replace("a/x", b"third")
    assert place.starts(["a/x", "a/none"]) == [b"third", None]
    (found,) = place.walk()
    assert (found.path, found.size) == ("a/x", 5)
    assert found.modified is not None
    assert abs(datetime.datetime.now(datetime.UTC) - found.modified) < datetime.timedelta(minutes=5)
    place.remove("a/x")
    place.remove("a/x")
    assert not place.exists()


WRITER = """
import sys
from privacy_gate.store.place import Place
place = Place(sys.argv[1])
sys.stdin.readline()
for number in range(40):
    place.write(f"a/{number}", sys.argv[2].encode() * 3_000)
    print(place.read(f"a/{number}")[:1].decode(), end="")
"""


def test_of_processes_that_store_an_object_at_once_the_first_stays(bucket: str) -> None:
    run = [sys.executable, "-c", WRITER, f"{bucket}/store"]
    writers = [
        subprocess.Popen([*run, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    said = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        said.append(out)
    assert len(said[0]) == 40
    assert said[0] == said[1] == said[2]
    place = Place(f"{bucket}/store")
    assert "".join((place.read(f"a/{number}") or b"?")[:1].decode() for number in range(40)) == said[0]


def test_a_table_and_shards_of_an_audit_meet_in_a_bucket(
    bucket: str, scene: Any, tracking: str, tmp_path: Path
) -> None:
    fsspec.filesystem("s3").put(str(tmp_path / "table.parquet"), f"{bucket}/data/table.parquet")
    manifest = describe_table(f"{bucket}/data/table.parquet", Columns(embedding="features"))
    model = scene.train(scene.member_rows)
    accuracy = {"holdout_accuracy": scene.accuracy(model, scene.holdout_rows)}
    uri = producer.register(model, "in-a-bucket", scene.recipe, manifest, accuracy, tracking)
    Path("policy.yaml").write_text(MEMBERSHIP)
    case = [uri, "--policy", "policy.yaml", "--store", f"{bucket}/store", "--tracking-uri", tracking]

    code, said = invoke("prepare", *case, "--shard", "1/2")
    assert code == 0, said
    code, said = invoke("audit", *case, "--output", "report")
    assert code == 4
    assert "every shard" in said
    code, said = invoke("prepare", *case, "--shard", "2/2")
    assert code == 0, said
    code, said = invoke("audit", *case, "--output", "report")
    assert code == 3, said
    assert json.loads(Path("report/report.json").read_text())["verdict"] == "blocked"

    place = Place(f"{bucket}/store")
    assert {entry.kind for entry in shelf.entries(place)} >= {"Score", "TrainReference"}
    assert [fault for _, fault in shelf.verify(place) if fault] == []
    code, said = invoke("store", "merge", f"{bucket}/store", "--into", "copy")
    assert code == 0, said
    assert {found.path: found.size for found in Place("copy").walk()} == {
        found.path: found.size for found in place.walk()
    }


def test_a_bucket_that_is_not_there_and_a_service_that_does_not_answer_are_exit_code_6(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        StoreError, match=r"bucket does not exist; .* name a folder or bucket that can be written"
    ) as one:
        Place("s3://nowhere/store").write("a/x", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own five tries take ten seconds
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"Could not connect .* nothing stored is lost: run the same") as other:
        Place(f"{bucket}/store").holds("a/x")
    assert (one.value.exit_code, other.value.exit_code) == (6, 6)


def invoke(*arguments: str) -> tuple[int, str]:
    """The exit code, and all output in one line."""
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, re.sub(r"\s+", " ", done.output)
