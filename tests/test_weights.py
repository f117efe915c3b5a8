"""Weights out of hostile files: bit for bit where they are sound, one clear error where not, and never a call."""

import importlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from privacy_gate.errors import CandidateError
from privacy_gate.weights import artifact_digest, match_strict, read_weights, read_weights_file


class Net(torch.nn.Module):
    """Convolution, batch norm, a tied and a non-persistent tensor: what state dicts are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.head = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
        self.tied = self.body[0].weight
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)).bfloat16()).float() + self.tied.sum()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.state_dict(),
        lambda net: net,
        lambda net: {"epoch": 3, "state_dict": net.state_dict(), "optimizer": {"lr": 0.1}},
        lambda net: {"model": net},
        lambda net: OrderedDict(net.state_dict()),
    ],
    ids=["state_dict", "module", "checkpoint", "module in a checkpoint", "ordered"],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_files_are_read_bit_for_bit(net: Net, wrap: Callable[[Net], Any], protocol: int, tmp_path: Path) -> None:
    torch.save(wrap(net), tmp_path / "model.pth", pickle_protocol=protocol)
    assert same(read_weights_file(tmp_path / "model.pth"), net.state_dict())


def test_files_of_torch_before_1_6_are_read_bit_for_bit(net: Net, tmp_path: Path) -> None:
    for name, content in {"state": net.state_dict(), "module": net}.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert same(read_weights_file(path), net.state_dict())
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CandidateError, match="it ends before its tensors do"):
            read_weights_file(path)


def test_exported_and_safetensors_files_are_read_bit_for_bit(net: Net, tmp_path: Path) -> None:
    plain = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(plain, tmp_path / "model.safetensors")
    assert same(read_weights_file(tmp_path / "model.safetensors"), plain)
    exported = torch.export.export(net, (torch.randn(2, 3, 8, 8),))
    torch.export.save(exported, tmp_path / "model.pt2")
    assert same(read_weights_file(tmp_path / "model.pt2"), net.state_dict())


def test_views_of_one_storage_are_read_as_what_they_view(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"row": whole[2], "column": whole[:, 1], "turned": whole.T, "scalar": whole[1, 1], "none": whole[:0]}
    torch.save(views, tmp_path / "views.pth")
    assert same(read_weights_file(tmp_path / "views.pth"), views)


class Hostile:
    """Pickles as a call that leaves a mark where it ran."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


def payloads(mark: Path) -> list[Hostile]:
    return [
        Hostile(os.system, f"touch {mark}"),
        Hostile(eval, f"open({str(mark)!r}, 'w')"),
        Hostile(exec, f"open({str(mark)!r}, 'w')"),
        Hostile(open, str(mark), "w"),
        Hostile(__import__, "antigravity"),
        Hostile(importlib.import_module, "antigravity"),
    ]


def scanned(path: Path) -> list[str]:
    """What reading the file does that only running its code would: audit events of a fresh interpreter."""
    script = (
        "import sys\n"
        "from privacy_gate.errors import CandidateError\n"
        "from privacy_gate.weights import read_weights_file\n"
        "from pathlib import Path\n"
        "import torch, safetensors.torch\n"
        "read_weights_file  # everything needed is imported before the hook listens\n"
        "events = []\n"
        "watched = {'import', 'exec', 'compile', 'os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn'}\n"
        "def hook(event, args):\n"
        "    writes = event == 'open' and 'w' in str(args[1] or '')\n"
        "    if event in watched or writes: events.append([event, str(args)[:80]])\n"
        "sys.addaudithook(hook)\n"
        "try: read_weights_file(Path(sys.argv[1])); outcome = 'read'\n"
        "except CandidateError as error: outcome = 'refused'\n"
        "found = list(events)\n"
        "print(outcome, found)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    outcome, events = done.stdout.split(" ", 1)
    assert events.strip() == "[]", events
    return [outcome]


@pytest.mark.parametrize("number", range(6))
def test_a_hostile_object_anywhere_in_a_torch_file_does_nothing(net: Net, number: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for place, content in {
        "alone": payloads(mark)[number],
        "entry": {**net.state_dict(), "evil": payloads(mark)[number]},
        "wrapped": {"state_dict": net.state_dict(), "hook": payloads(mark)[number]},
    }.items():
        path = tmp_path / f"{place}.pth"
        torch.save(content, path)
        try:
            found = read_weights_file(path)
        except CandidateError:
            assert place == "alone"
        else:
            assert same(found, net.state_dict())
    net.evil = payloads(mark)[number]  # type: ignore[assignment]
    torch.save(net, tmp_path / "module.pth")
    assert same(read_weights_file(tmp_path / "module.pth"), net.state_dict())
    assert not mark.exists()


def test_reading_a_hostile_file_causes_no_import_call_or_write(net: Net, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    net.evil = payloads(mark)  # type: ignore[assignment]
    torch.save(net, tmp_path / "module.pth")
    assert scanned(tmp_path / "module.pth") == ["read"]
    torch.save(payloads(mark)[0], tmp_path / "alone.pth")
    assert scanned(tmp_path / "alone.pth") == ["refused"]
    assert not mark.exists()


def test_an_exported_archive_with_a_hostile_sample_input_is_read_without_it(net: Net, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),)), path)
    evil = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {mark}"), evil)
    rewrite(path, {"model/data/sample_inputs/model.pt": evil.getvalue()})
    assert same(read_weights_file(path), net.state_dict())
    assert not mark.exists()


OPCODES = {
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "newobj": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "build on a class": b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00aK\x01sb.",
    "build on the rebuild function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb.",
    "storage of nothing": b"\x80\x02X\x07\x00\x00\x00storageQ.",
    "rebuild from nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nNK\x00))\x88Nt\x85R.",
    "endless bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
    "no stop": b"\x80\x02}",
    "empty": b"",
}


@pytest.mark.parametrize("name", OPCODES)
def test_hand_made_opcodes_are_refused_in_one_line(name: str, net: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(net.state_dict(), path)
    rewrite(path, {"model/data.pkl": OPCODES[name]})
    with pytest.raises(CandidateError) as caught:
        read_weights_file(path)
    assert str(caught.value).startswith("model.pth: ")
    assert "\n" not in str(caught.value)


def rewrite(path: Path, changes: dict[str, bytes | None], *, compressed: bool = False) -> None:
    """The same archive with other records; None drops one."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    records.update({name: content for name, content in changes.items() if content is not None})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            if changes.get(name, b"") is not None:
                archive.writestr(name, content)


@pytest.mark.parametrize(
    ("changes", "compressed", "expected"),
    [
        ({"model/data/0": None}, False, "record data/0 is missing"),
        ({"model/data/0": b"\0"}, False, "reaches out of its record of 1 bytes"),
        ({"model/data.pkl": None}, False, "not a file of torch.save"),
        ({"model/byteorder": b"big"}, False, "not little-endian"),
        ({"model/../../escape": b""}, False, "leads out of the archive"),
        ({"/model/escape": b""}, False, "leads out of the archive"),
        ({"other/data.pkl": b""}, False, "stands twice"),
        ({"model/bomb": bytes(10**7)}, True, "compressed or encrypted"),
    ],
)
def test_broken_archives_are_refused(
    changes: dict[str, bytes | None], compressed: bool, expected: str, net: Net, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save(net.state_dict(), path)
    rewrite(path, changes, compressed=compressed)
    with pytest.raises(CandidateError, match=expected):
        read_weights_file(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(net: Net, bad: float, tmp_path: Path) -> None:
    net.body[0].bias.data[1] = bad
    torch.save(net.state_dict(), tmp_path / "model.pth")
    with pytest.raises(CandidateError, match=r"model.pth: tensor 'body.0.bias' holds values that are not finite"):
        read_weights_file(tmp_path / "model.pth")


def test_an_exported_tensor_of_impossible_layout_is_refused(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),)), path)
    name = "model/data/weights/model_weights_config.json"
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read(name))
    for change, expected in (
        ({"storage_offset": {"as_int": 10**9}}, "reaches out"),
        ({"sizes": [{"as_int": -1}] * 4}, "is broken"),
        ({"dtype": 99}, "is not read"),
        ({"strides": []}, "0 strides"),
    ):
        broken = json.loads(json.dumps(config))
        broken["config"]["body.0.weight"]["tensor_meta"].update(change)
        rewrite(path, {name: json.dumps(broken).encode()})
        with pytest.raises(CandidateError, match=expected):
            read_weights_file(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "its pickle is broken"),
        (b"PK\x05\x06" + bytes(18), "its pickle is broken"),
        (b"PK\x03\x04" + bytes(18), "not a sound archive"),
        (pickle.dumps({}), r"not a file of torch\.save"),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CandidateError, match=expected):
        read_weights_file(tmp_path / "model.pth")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"hello": 1}, tmp_path / "model.pth")
    with pytest.raises(CandidateError, match="no tensors are inside"):
        read_weights_file(tmp_path / "model.pth")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "small.pth"
    torch.save({"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}, path)
    return path


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_makes_the_reader_fail_otherwise(data: st.DataObject, small_file: Path, tmp_path: Path) -> None:
    payload = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(payload)), st.integers(0, len(payload))))
    path = tmp_path / "fuzz.pth"
    path.write_bytes(payload[:cut])
    try:
        found = read_weights_file(path)
    except CandidateError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_a_state_dict_fits_or_every_misfit_is_listed(net: Net) -> None:
    expected = net.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in expected.items()}
    assert same(match_strict(parallel, expected, "it"), expected)
    without = {name: tensor for name, tensor in expected.items() if "num_batches" not in name}
    assert same(match_strict(without, expected, "it"), expected)
    wrong = {**expected, "extra": torch.zeros(1), "head.bias": torch.zeros(3)}
    del wrong["head.weight"]
    with pytest.raises(CandidateError) as caught:
        match_strict(wrong, expected, "the candidate")
    for part in ("1 missing (head.weight)", "1 unexpected (extra)", "head.bias (3,), expected (2,)"):
        assert part in str(caught.value)


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


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "fifo"])
def test_links_and_special_files_are_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "plain").write_text("x")
    if kind == "fifo":
        os.mkfifo(folder / "evil")
    else:
        target = {"file": "/etc/hostname", "folder": "/etc", "dangling": "/nowhere"}[kind]
        (folder / "evil").symlink_to(target)
    with pytest.raises(CandidateError, match=r"the artifact holds a .*'evil'"):
        artifact_digest(folder)
    with pytest.raises(CandidateError, match="evil"):
        read_weights(folder)


def test_the_one_weight_file_is_found_and_two_of_a_kind_are_refused(net: Net, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no weight file"):
        read_weights(tmp_path)
    (tmp_path / "data").mkdir()
    torch.save(net, tmp_path / "data" / "model.pth")
    assert same(read_weights(tmp_path), net.state_dict())
    torch.save(net, tmp_path / "data" / "other.pth")
    with pytest.raises(CandidateError, match="2 weight files"):
        read_weights(tmp_path)
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path).keys() == {"w"}
