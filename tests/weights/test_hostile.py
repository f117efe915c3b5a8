"""Files that try to run code, to crash, to hang or to fill the memory. Each is read, or refused in one line."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from privacy_gate.errors import CandidateError
from privacy_gate.weights import read_weights_file

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
)
"""The opcodes of a tensor up to its storage. Its offset, size, stride and END follow."""

END = b"\x89}tR"

REFUSED = {
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "dotted global": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x04true\x85R.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "newobj": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.",
    "newobj with keywords": b"\x80\x04cos\nsystem\n)}\x92.",
    "extension": b"\x80\x02\x82\x01.",
    "text persistent id": b"Pos.system\n.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "build on a class": b"\x80\x02cos\nsystem\n}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "build on the rebuild function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb.",
    "method of a dict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemscos\nsystem\nsb.",
    "method of all dicts": b"ccollections\nOrderedDict\nq\x00N}X\x05\x00\x00\x00itemscos\nsystem\ns\x86b0h\x00)R.",
    "storage of nothing": b"\x80\x02X\x07\x00\x00\x00storageQ.",
    "rebuild from nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x88NtR.",
    "endless bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
    "no stop": b"\x80\x02}",
    "empty": b"",
    "stack underflow": b"\x80\x02R.",
    "mark underflow": b"\x80\x02t.",
    "memo of nothing": b"\x80\x02h\x07.",
    "memo index of 2**31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "key nested deep": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "key of doubled tuples": b"\x80\x02})" + b"2\x86" * 100 + b"K\x01s.",
    "list in itself": b"\x80\x02]2a.",
    "dict wrapped in itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "module in itself": b"\x80\x02cm\nM\n)Rq\x00}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssb.",
    "name doubled without end": b"\x80\x04X\xff\x03\x00\x00" + b"a" * 1023 + b"2\x93.",
    "one state set on all": b"\x80\x02cm\nM\nq\x000}q\x01("
    + b"".join(b"X\x04\x00\x00\x00%04dN" % key for key in range(2000))
    + b"u0"
    + b"h\x00)Rh\x01b0" * 1100
    + b"N.",
    "view of a storage": TENSOR.removesuffix(b"tQ")
    + b"X\x01\x00\x00\x00vK\x00K\x01\x87tQK\x00K\x01\x85K\x01\x85"
    + END
    + b".",
    "storage of two types": b"("
    + TENSOR
    + b"K\x00))"
    + END
    + TENSOR.replace(b"Float", b"Int")
    + b"K\x00))"
    + END
    + b"t.",
    "too many opcodes": b"\x80\x02" + b"N0" * 1_000_001 + b"N.",
}


REASONS = {
    "module in itself": "or a module contains itself",
    "one state set on all": "the same state is set on too many objects",
    "view of a storage": "as torch before 0.4 wrote it",
    "storage of two types": "storage '0' has two types",
    "too many opcodes": "more than 2,000,000 opcodes",
}
"""The expected reason, for files that would also be refused for other reasons."""


@pytest.mark.parametrize("name", REFUSED)
def test_hand_made_opcodes_are_refused_in_one_line(name: str, net: Any, rewrite: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(net.state_dict(), path)
    rewrite(path, {"model/data.pkl": REFUSED[name]})
    with pytest.raises(CandidateError) as caught:
        read_weights_file(path)
    assert str(caught.value).startswith("model.pth: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert REASONS.get(name, "") in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (b"K\x00K\x02\x85K\x01\x85", "extends beyond"),
        (b"K\x01K\x01\x85K\x01\x85", "extends beyond"),
        (b"J\xff\xff\xff\xffK\x01\x85K\x01\x85", "impossible layout"),
        (b"K\x00K\x01\x85J\xff\xff\xff\xff\x85", "impossible layout"),
        (b"K\x00\x8a\x09" + b"\xff" * 8 + b"\x00\x85K\x00\x85", "impossible layout"),
        (b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85", "extends beyond"),
        (b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87K\x00K\x00K\x00\x87", "extends beyond"),
        (b"K\x00K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87K\x00K\x00K\x00\x87", "its other axes exceed"),
        (b"K\x00K\x01\x85)", "1 sizes and 0 strides"),
        (b"K\x00(" + b"K\x01" * 65 + b"t(" + b"K\x01" * 65 + b"t", "65 sizes"),
        (b"K\x00\x88\x85K\x01\x85", "impossible layout"),
    ],
)
def test_no_tensor_reaches_out_of_its_storage(layout: bytes, expected: str, rewrite: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.ones(1)}, path)
    for offset_size_stride, outcome in ((b"K\x00K\x01\x85K\x01\x85", None), (layout, expected)):
        state = b"}X\x01\x00\x00\x00w" + TENSOR + offset_size_stride + END + b"s"
        rewrite(path, {"model/data.pkl": b"\x80\x02" + state + b"."})
        if outcome is None:
            assert torch.equal(read_weights_file(path)["w"], torch.ones(1))
            continue
        with pytest.raises(CandidateError, match=outcome):
            read_weights_file(path)


def test_a_state_changed_after_it_was_set_is_read_as_python_reads_it(rewrite: Any, tmp_path: Path) -> None:
    """BUILD copies the state. A reader that followed later changes would judge other weights than the served ones."""
    path = tmp_path / "model.pth"
    torch.save({"w": torch.ones(1)}, path)
    tensor = TENSOR + b"K\x00K\x01\x85K\x01\x85" + END
    state = b"}q\x01X\x0b\x00\x00\x00_parameters}X\x01\x00\x00\x00w" + tensor + b"ss"
    later = b"h\x01X\x0b\x00\x00\x00_parameters}s0"
    rewrite(path, {"model/data.pkl": b"\x80\x02cm\nM\n)R" + state + b"b" + later + b"."})
    assert read_weights_file(path).keys() == {"w"}


def hostile_files(net: Any, payloads: list[Any], pt2: Path, rewrite: Any, folder: Path) -> dict[str, bool]:
    """One file per payload and hiding place. The value is True if the weights next to it can be read."""
    readable: dict[str, bool] = {}
    state = net.state_dict()
    for number, payload in enumerate(payloads):
        net.evil = payload
        for place, content in {
            "alone": payload,
            "entry": {**state, "evil": payload},
            "wrapped": {"state_dict": state, "hook": payload},
            "module": net,
        }.items():
            for form in ("zip", "legacy"):
                name = f"{place}-{number}-{form}.pth"
                torch.save(content, folder / name, _use_new_zipfile_serialization=form == "zip")
                readable[name] = place != "alone"
        evil = io.BytesIO()
        torch.save(payload, evil)
        for place, record in {"sample": "data/sample_inputs/model.pt", "weight": "data/weights/weight_0"}.items():
            name = f"{place}-{number}.pt2"
            (folder / name).write_bytes(pt2.read_bytes())
            changes = {f"archive/{record}": evil.getvalue()}
            if place == "weight":
                config = "archive/data/weights/model_weights_config.json"
                with zipfile.ZipFile(pt2) as archive:
                    entries = json.loads(archive.read(config))
                for entry in entries["config"].values():
                    entry["use_pickle"] = True
                changes[config] = json.dumps(entries).encode()
            rewrite(folder / name, changes)
            readable[name] = place == "sample"
    for name, opcodes in REFUSED.items():
        if len(opcodes) < 10_000:
            file = f"{name.replace(' ', '-')}.pth"
            torch.save(state, folder / file)
            with zipfile.ZipFile(folder / file) as archive:
                root = archive.namelist()[0].split("/")[0]
            rewrite(folder / file, {f"{root}/data.pkl": opcodes})
            readable[file] = False
    return readable


# Reads every file in a folder in an interpreter that records the events that executed code would cause. Then lets torch
# load one file, which proves that the record works and that the files are dangerous.
WATCH = """
import json, sys
import encodings.cp437  # zipfile needs it to read the names of records
from pathlib import Path
import torch
from privacy_gate.errors import CandidateError
from privacy_gate.weights import read_weights_file
watched = {"import", "exec", "compile", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
           "pickle.find_class", "marshal.loads", "socket.connect", "ctypes.dlopen"}
events = []
def hook(event, arguments):
    if event in watched or (event == "open" and set("wax+") & set(str(arguments[1] or ""))):
        events.append([event, str(arguments)[:80]])
outcomes = {}
sys.addaudithook(hook)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        outcomes[path.name] = sorted(read_weights_file(path))
    except CandidateError:
        outcomes[path.name] = None
found = list(events)
torch.load(Path(sys.argv[1]) / "alone-0-zip.pth", weights_only=False)
print(json.dumps([outcomes, found, [event for event, _ in events[len(found):]]]))
"""


def test_reading_hostile_files_causes_no_import_no_call_and_no_write(
    net: Any, payloads: list[Any], mark: Path, pt2: Path, rewrite: Any, same: Any, tmp_path: Path
) -> None:
    expected, folder = sorted(net.state_dict()), tmp_path / "hostile"
    folder.mkdir()
    readable = hostile_files(net, payloads, pt2, rewrite, folder)
    for name, sound in readable.items():
        if sound:
            assert same(read_weights_file(folder / name), net.state_dict()), name
    assert not mark.exists()
    done = subprocess.run([sys.executable, "-c", WATCH, folder], capture_output=True, text=True, check=True)
    outcomes, caused, control = json.loads(done.stdout)
    assert outcomes == {name: expected if sound else None for name, sound in readable.items()}
    assert caused == []
    assert {"pickle.find_class", "os.system"} <= set(control), "the record must show what a real load does"
    assert mark.exists(), "and the file must be one that harms"


@pytest.mark.parametrize(
    ("changes", "compressed", "expected"),
    [
        ({"model/data/0": None}, False, "record 'data/0' is missing"),
        ({"model/data/0": b"\0"}, False, "extends beyond its record of 1 bytes"),
        ({"model/data.pkl": None}, False, "not a file from torch.save"),
        ({"model/byteorder": b"big"}, False, "not little-endian"),
        ({"model/../../escape": b""}, False, "leads out of the archive"),
        ({"/model/escape": b""}, False, "leads out of the archive"),
        ({"model\\..\\escape": b""}, False, "leads out of the archive"),
        ({"other/data.pkl": b""}, False, "leads out of the archive's one folder"),
        ({"model/bomb": bytes(10**7)}, True, "compressed or encrypted"),
    ],
)
def test_broken_archives_are_refused(
    changes: dict[str, bytes | None], compressed: bool, expected: str, net: Any, rewrite: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save(net.state_dict(), path)
    rewrite(path, changes, compressed=compressed)
    with pytest.raises(CandidateError, match=expected):
        read_weights_file(path)


def patched(payload: bytes, name: bytes, offset: int, form: str, value: int) -> bytes:
    """The zip file with one field changed in a record's entry in the central directory."""
    place = payload.rindex(name) - 46
    assert payload[place : place + 4] == b"PK\x01\x02"
    changed = bytearray(payload)
    struct.pack_into(form, changed, place + offset, value)
    return bytes(changed)


def test_records_that_lie_about_their_size_place_or_secrecy_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.arange(64.0), "v": torch.ones(64)}, path)
    sound = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first, second = archive.getinfo("model/data/0"), archive.getinfo("model/data/1")
    name = b"model/data/1"
    for content, expected in (
        (patched(sound, name, 24, "<I", 1 << 30), "has another size than its header claims"),
        (patched(patched(sound, name, 24, "<I", 1 << 30), name, 20, "<I", 1 << 30), "overlap or exceed"),
        (patched(sound, name, 42, "<I", first.header_offset), "overlap"),
        (patched(sound, name, 42, "<I", second.header_offset + 1), "overlap|not a sound archive"),
        (patched(sound, name, 8, "<H", 0x801 | 8), "encrypted"),
        (patched(sound, name, 10, "<H", 8), "compressed"),
        (b"MZ" + bytes(62) + sound, "its pickle is invalid"),
        (b"PK\x03\x04" + bytes(60) + sound, "overlap"),
        (sound + b"appended", "has data after its end"),
        (sound[:-2] + b"\x04\x00note", "has data after its end"),
        (sound[:-1], "is truncated"),
    ):
        path.write_bytes(content)
        with pytest.raises(CandidateError, match=expected):
            read_weights_file(path)
    path.write_bytes(sound)
    assert torch.equal(read_weights_file(path)["w"], torch.arange(64.0))


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/data/0", torch.zeros(4).numpy().tobytes())
    with pytest.raises(CandidateError, match="'data/0' occurs twice"):
        read_weights_file(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.pth", b"", "its pickle is invalid"),
        ("model.pth", b"PK\x05\x06" + bytes(18), "its pickle is invalid"),
        ("model.pth", b"PK\x03\x04" + bytes(18), "not a sound archive"),
        ("model.pth", pickle.dumps({}), r"not a file from torch\.save"),
        ("model.pt2", b"", "not a sound archive"),
        ("model.pt2", b"PK\x05\x06" + bytes(18), r"no .* is inside: not a file from torch\.export\.save"),
        ("model.safetensors", b"", "not a sound safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2**63) + b"{}", "not a sound safetensors file"),
        ("model.safetensors", struct.pack("<Q", 200_000_000) + b"{}", "not a sound safetensors file"),
        ("model.safetensors", struct.pack("<Q", 4) + b"\nnul", "not a sound safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}", "no tensors are inside"),
    ],
)
def test_what_is_no_weight_file_is_refused(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CandidateError, match=expected) as caught:
        read_weights_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("a.pth", "a.pt2", "a.safetensors"):
        with pytest.raises(CandidateError, match=f"^{name}: "):
            read_weights_file(tmp_path / name)


SMALL = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, exported: bytes) -> dict[str, bytes]:
    """A valid file of each kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(SMALL, folder / "zip.pth")
    torch.save(SMALL, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(SMALL, folder / "model.safetensors")
    (folder / "model.pt2").write_bytes(exported)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damaged(data: st.DataObject, payload: bytes) -> bytes:
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.one_of(st.just(len(payload)), st.integers(0, len(payload))))])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_zip_gives_the_same_tensors_or_a_refusal(
    data: st.DataObject, small: Any, same: Any, tmp_path: Path
) -> None:
    path = tmp_path / "fuzz.pth"
    path.write_bytes(damaged(data, small["zip.pth"]))
    try:
        found = read_weights_file(path)
    except CandidateError:
        return
    assert same(found, SMALL)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["pickle", "legacy.pth", "model.safetensors", "config"]))
def test_damage_that_no_checksum_shows_gives_sound_tensors_or_a_refusal(
    data: st.DataObject, name: str, small: Any, rewrite: Any, tmp_path: Path
) -> None:
    path = tmp_path / {"pickle": "zip.pth", "config": "model.pt2"}.get(name, name)
    path.write_bytes(small[path.name])
    inner = {"pickle": "zip/data.pkl", "config": "archive/data/weights/model_weights_config.json"}.get(name)
    if inner:
        with zipfile.ZipFile(path) as archive:
            rewrite(path, {inner: damaged(data, archive.read(inner))})
    else:
        path.write_bytes(damaged(data, small[path.name]))
    try:
        found = read_weights_file(path)
    except CandidateError:
        return
    assert all(tensor.clone().numel() * tensor.itemsize <= path.stat().st_size for tensor in found.values())
