"""Valid files are read bit for bit, whatever wrote them. Valid files without weights are refused with a reason."""

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow.pytorch
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from privacy_gate.compute.images.backbone import build
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.errors import CandidateError
from privacy_gate.weights import match_strict, read_weights, read_weights_file


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.state_dict(),
        lambda net: net,
        lambda net: {"epoch": 3, "state_dict": net.state_dict(), "best": torch.tensor(0.9), "model": {"name": "net"}},
        lambda net: {"model": net, "optimizer": torch.optim.Adam(net.parameters()).state_dict()},
        lambda net: {"model": {"state_dict": net.state_dict()}},
        lambda net: OrderedDict(net.state_dict()),
    ],
    ids=["state_dict", "module", "checkpoint", "module in a checkpoint", "twice wrapped", "ordered"],
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_torch_are_read_bit_for_bit(
    net: Any, same: Any, wrap: Callable[[Any], Any], protocol: int, tmp_path: Path
) -> None:
    torch.save(wrap(net), tmp_path / "model.pth", pickle_protocol=protocol)
    assert same(read_weights_file(tmp_path / "model.pth"), net.state_dict())


def test_files_of_torch_before_1_6_are_read_bit_for_bit(net: Any, same: Any, tmp_path: Path) -> None:
    for name, content in {"state": net.state_dict(), "module": net}.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert same(read_weights_file(path), net.state_dict())
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CandidateError, match="it ends before its tensors do"):
            read_weights_file(path)


def test_exported_and_safetensors_files_are_read_bit_for_bit(net: Any, same: Any, pt2: Path, tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, tmp_path / "model.safetensors")
    assert same(read_weights_file(tmp_path / "model.safetensors"), net.state_dict())
    assert same(read_weights_file(pt2), net.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_model_is_read_bit_for_bit_from_both_of_mlflow_s_formats(name: str, same: Any, tmp_path: Path) -> None:
    model = build(Backbone.model_construct(name=name, weights=None), 4)
    x = torch.randn(2, 3, *model.default_cfg["input_size"][1:])
    for form in ("pickle", "pt2") if name == "test_resnet" else ("pickle",):
        folder = tmp_path / form
        mlflow.pytorch.save_model(
            model, folder, serialization_format=form, input_example=x.numpy(), pip_requirements=[]
        )
        assert same(read_weights(folder), model.state_dict())


def test_a_module_whose_class_is_pickled_by_value_is_read_too(same: Any, tmp_path: Path) -> None:
    """Pickles a class by value, as cloudpickle (MLflow's pickle module) does for classes from a notebook."""

    class Local(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 2)

    model = Local()
    torch.save(model, tmp_path / "model.pth", pickle_module=cloudpickle)
    assert same(read_weights_file(tmp_path / "model.pth"), model.state_dict())


TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
TYPES += [torch.int8, torch.uint8, torch.bool]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_views_of_any_storages_are_read_as_torch_reads_them(data: st.DataObject, same: Any, tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for number in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        whole = torch.randint(0, 99, shape).to(data.draw(st.sampled_from(TYPES)))
        tensors[f"whole.{number}"] = whole
        tensors[f"turned.{number}"] = whole.permute(tuple(reversed(range(whole.dim()))))
        if whole.dim():
            tensors[f"part.{number}"] = whole[data.draw(st.integers(0, 5)) :: data.draw(st.integers(1, 3))]
    path = tmp_path / "views.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    found = read_weights_file(path)
    assert same(found, torch.load(path, weights_only=True))
    assert all(found[name].stride() == tensor.stride() for name, tensor in tensors.items() if tensor.numel())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_refused_by_name(net: Any, bad: float, form: str, tmp_path: Path) -> None:
    net.body[0].bias.data[1] = bad
    path = tmp_path / f"model.{form}"
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.save(state, path) if form == "pth" else save_file(state, path)
    with pytest.raises(CandidateError, match=rf"model.{form}: tensor 'body.0.bias' holds values that are not finite"):
        read_weights_file(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"hello": 1}, "no tensors are inside"),
        ([torch.ones(2)], "no tensors are inside"),
        ({"w": torch.ones(2), "s": torch.eye(2).to_sparse()}, "'s' is a 'torch._utils._rebuild_sparse_tensor'"),
        ({"c": torch.ones(2, dtype=torch.complex64)}, "'c' is a 'torch.ComplexFloatStorage'"),
        ({"f": torch.ones(2).to(torch.float8_e4m3fn)}, "'f' is a 'torch._utils._rebuild_tensor_v3'"),
        ({"e": torch.ones(1).expand(1000)}, "extends beyond its record"),
        ({"n": torch._neg_view(torch.ones(2))}, "a tensor has metadata"),
        ({"state_dict": {"w": torch.ones(2)}, "state_dict_ema": {"w": torch.zeros(2)}}, "several sets of weights"),
        ({"w": torch.ones(2), "model": {"w": torch.zeros(2)}}, "several sets of weights are inside .'model', 'w'."),
        ({"new\nline": torch.ones(2)}, r"'new\\nline' has a name that is too long"),
        ({"x" * 2000: torch.ones(2)}, "has a name that is too long"),
    ],
)
def test_what_is_no_plain_state_dict_is_refused_with_its_reason(content: Any, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CandidateError, match=expected) as caught:
        read_weights_file(tmp_path / "model.pth")
    assert str(caught.value).startswith("model.pth: ")
    assert "\n" not in str(caught.value)


def test_types_that_are_not_read_are_refused_in_every_format(pt2: Path, rewrite: Any, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(CandidateError, match=r"model.safetensors: tensor 'w' has type torch.float8"):
        read_weights_file(tmp_path / "model.safetensors")
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    (tmp_path / "model.pt").write_bytes(file.getvalue())
    with pytest.raises(CandidateError, match="compressed or encrypted: save the state dict"):
        read_weights_file(tmp_path / "model.pt")


def test_a_state_dict_fits_or_every_misfit_is_listed(net: Any, same: Any) -> None:
    expected = net.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in expected.items()}
    assert same(match_strict(parallel, expected, "it"), expected)
    without = {name: tensor for name, tensor in expected.items() if "num_batches" not in name}
    assert same(match_strict(without, expected, "it"), expected)
    wrong = {**expected, "extra": torch.zeros(1), "head.bias": torch.zeros(3), "steps": torch.zeros(3)}
    del wrong["head.weight"]
    with pytest.raises(CandidateError) as caught:
        match_strict(wrong, expected, "the candidate")
    assert caught.value.exit_code == 5
    for part in (
        "1 missing (head.weight)",
        "1 unexpected (extra)",
        "1 of another shape (head.bias (3,), expected (2,))",
        "1 of another type (steps torch.float32, expected torch.int64)",
    ):
        assert part in str(caught.value)


def test_floats_may_change_type_but_not_become_infinite(net: Any) -> None:
    expected = {"w": torch.zeros(2)}
    assert match_strict({"w": torch.ones(2, dtype=torch.float64)}, expected, "it")["w"].dtype == torch.float32
    with pytest.raises(CandidateError, match="tensor 'w' holds values that are not finite"):
        match_strict({"w": torch.full((2,), 1e300, dtype=torch.float64)}, expected, "it")


def test_a_long_list_of_misfits_is_counted_and_cut(net: Any) -> None:
    with pytest.raises(CandidateError, match=r"10 missing \(body.0.bias, body.0.weight, body.1.bias, \.\.\.\)"):
        match_strict({}, net.state_dict(), "it")


def test_an_exported_tensor_of_impossible_layout_is_refused(pt2: Path, rewrite: Any) -> None:
    name = "archive/data/weights/model_weights_config.json"
    with zipfile.ZipFile(pt2) as archive:
        config = json.loads(archive.read(name))
    for change, expected in (
        ({"storage_offset": {"as_int": 10**9}}, "extends beyond"),
        ({"storage_offset": {"as_int": 2**63}}, "impossible layout"),
        ({"sizes": [{"as_int": -1}] * 4}, "impossible layout"),
        ({"sizes": [{"as_int": True}] * 4}, "impossible layout"),
        ({"sizes": [{"as_int": 2**40}] * 4}, "extends beyond"),
        ({"sizes": [{"as_int": 2**40}] * 3 + [{"as_int": 0}]}, "its other axes exceed"),
        ({"sizes": [{"as_expr": "s0"}] * 4}, "is invalid"),
        ({"dtype": 99}, "unsupported type or layout"),
        ({"layout": 1}, "unsupported type or layout"),
        ({"dtype": 5}, "but another in its record has"),
        ({"strides": []}, "0 strides"),
    ):
        broken = json.loads(json.dumps(config))
        broken["config"]["body.0.weight"]["tensor_meta"].update(change)
        rewrite(pt2, {name: json.dumps(broken).encode()})
        with pytest.raises(CandidateError, match=expected):
            read_weights_file(pt2)
