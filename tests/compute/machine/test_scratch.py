"""Temporary folders and files are complete, deleted afterwards, and raise one clear error if the disk is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from privacy_gate.compute.machine.scratch import scratch_file, scratch_folder
from privacy_gate.errors import UnavailableError


def test_a_folder_is_deleted_whatever_happens() -> None:
    seen: list[Path] = []

    def interrupted() -> None:
        with scratch_folder() as folder:
            (folder / "file").write_text("x")
            seen.append(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not seen[0].exists()


def test_a_file_has_its_full_size_reserved_on_the_disk() -> None:
    with scratch_file(1 << 20) as file:
        assert len(file.read()) == 1 << 20
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(FileNotFoundError), scratch_folder() as folder:
        (folder / "absent").read_bytes()


def test_the_message_names_tmpdir_if_no_folder_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    for room in (scratch_folder(), scratch_file(1)):
        with pytest.raises(UnavailableError, match="or set TMPDIR to a folder on a larger disk") as caught, room:
            pass
        assert caught.value.exit_code == 6


LIMITED = """
import resource
from pathlib import Path
from privacy_gate.dossier.backbone import Backbone, PublicWeights
from privacy_gate.compute.images.backbone import public_tensors
from privacy_gate.compute.images.pixels import _room
from privacy_gate.compute.machine.scratch import scratch_folder
from privacy_gate.errors import UnavailableError
Path("weights").write_bytes(b"x" * 20_000)
def fill_folder():
    with scratch_folder() as folder:
        (folder / "large").write_bytes(b"x" * 20_000)
def copy_weights():
    import hashlib
    named = hashlib.sha256(b"x" * 20_000).hexdigest()
    public_tensors(Backbone(name="test_resnet", weights=PublicWeights(uri="weights", sha256=named)))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for fill in (fill_folder, copy_weights, lambda: _room((600_000, 1024))):
    try:
        fill()
    except UnavailableError as error:
        print(error.exit_code, error)
"""


def test_a_full_disk_is_reported_before_anything_is_mapped(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("6 temporary files: [Errno 27] File too large") for line in lines)
