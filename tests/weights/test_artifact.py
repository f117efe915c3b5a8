"""The digest of an artifact, and the choice of its weight file."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from privacy_gate.errors import CandidateError
from privacy_gate.weights import artifact_digest, read_weights


def test_the_digest_depends_on_names_and_bytes_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "x").write_bytes(b"1")
        (tmp_path / name / "y").write_bytes(b"2")
    first = artifact_digest(tmp_path / "a")
    assert artifact_digest(tmp_path / "b") == first
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    assert artifact_digest(tmp_path / "b") != first
    (tmp_path / "b" / "z").rename(tmp_path / "b" / "y")
    (tmp_path / "b" / "y").write_bytes(b"3")
    assert artifact_digest(tmp_path / "b") != first


def test_the_digest_is_what_anyone_can_compute_by_hand(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w").write_bytes(b"weights")
    (tmp_path / "MLmodel").write_bytes(b"")
    lines = [
        f'["MLmodel", 0, "{hashlib.sha256(b"").hexdigest()}"]',
        f'["data/w", 7, "{hashlib.sha256(b"weights").hexdigest()}"]',
    ]
    assert artifact_digest(tmp_path) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_name_cannot_pass_for_two_files(tmp_path: Path) -> None:
    """Names may contain line breaks and quotes. The encoding must keep them from looking like the end of a line."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    empty = hashlib.sha256(b"").hexdigest()
    (two / "a").write_bytes(b"")
    (two / "b").write_bytes(b"")
    (one / f'a", 0, "{empty}"]\n["b').write_bytes(b"")
    assert artifact_digest(one) != artifact_digest(two)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "fifo"])
def test_links_and_special_files_are_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    (folder / "inner").mkdir(parents=True)
    (folder / "plain").write_text("x")
    if kind == "fifo":
        os.mkfifo(folder / "inner" / "evil")
    else:
        target = {"file": "/etc/hostname", "folder": "/etc", "dangling": "/nowhere"}[kind]
        (folder / "inner" / "evil").symlink_to(target)
    for reader in (artifact_digest, read_weights):
        with pytest.raises(CandidateError, match=r"the artifact holds a .*'inner/evil'"):
            reader(folder)


def test_an_empty_and_a_missing_artifact_are_one_error_each(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="has no files"):
        artifact_digest(tmp_path)
    for reader in (artifact_digest, read_weights):
        with pytest.raises(CandidateError, match="cannot be read"):
            reader(tmp_path / "nothing")


def test_the_one_weight_file_is_found_and_two_of_a_kind_are_refused(net: Any, same: Any, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no weight file"):
        read_weights(tmp_path)
    (tmp_path / "data").mkdir()
    torch.save(net, tmp_path / "data" / "model.pth")
    assert same(read_weights(tmp_path), net.state_dict())
    torch.save(net, tmp_path / "data" / "other.PT")
    with pytest.raises(CandidateError, match=r"2 weight files \('data/model.pth', 'data/other.PT'\)"):
        read_weights(tmp_path)


def test_files_of_several_kinds_must_hold_the_same_weights(net: Any, same: Any, tmp_path: Path) -> None:
    """Otherwise the gate could judge a harmless file while MLflow serves a leaky one next to it."""
    torch.save(net, tmp_path / "model.pth")
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path), state)
    state["body.0.bias"][0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CandidateError, match=r"model.safetensors and model.pth hold different weights"):
        read_weights(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "model.pth").write_bytes(b"nothing that can be read")
    with pytest.raises(CandidateError, match=r"^model.pth: "):
        read_weights(tmp_path)
