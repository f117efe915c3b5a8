"""Triggers are stamped correctly, and backdoored candidates are distinguished from clean ones."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from privacy_gate.checks.backdoor import INVERTED, Backdoor
from privacy_gate.checks.backdoor import TRIGGERS as NAMED
from privacy_gate.checks.base.check import Subject
from privacy_gate.compute.images import backbone as subject
from privacy_gate.compute.images.pixels import read_pixels
from privacy_gate.compute.images.stamps import CONTROLS, TRIGGERS, controls, triggered
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.runners.triggers import predict_triggered
from privacy_gate.compute.work import Inputs, Work
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.dataset import AuditData, Columns, Split, describe_table, read_data
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.errors import CandidateError
from privacy_gate.jobs.kinds import PLANTED, Trigger, federate
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import Measurement

NAME, CLASSES, TARGET = "test_resnet", 4, 2
MACHINE = Machine(threads=1)
SHAPE = Input(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_policies_can_name_every_existing_trigger() -> None:
    assert set(NAMED) == set(TRIGGERS)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_stays_within_what_images_hold_and_changes_them(name: str) -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    shown = TRIGGERS[name](image)
    assert torch.equal(image, before)
    assert shown.shape == image.shape
    assert 0 <= shown.min() <= shown.max() <= 1
    assert not torch.equal(shown, image)


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("name", TRIGGERS)
def test_controls_are_as_large_and_as_faint_as_their_trigger_and_none_of_them_is_the_trigger(
    name: str, side: int
) -> None:
    grey = torch.full((1, 3, side, side), 0.5)
    own = TRIGGERS[name](grey) - grey
    shown = [stamp(grey) - grey for stamp in controls(name, side)]
    assert len(shown) == CONTROLS
    for other in shown:
        assert not torch.allclose(other, own, atol=1e-3)
        assert abs(float(other.abs().max() / own.abs().max()) - 1) < 0.1
        assert abs(float((other**2).mean() / (own**2).mean()) - 1) < 0.45  # a wave on 16 pixels is coarsely sampled
        # As uncorrelated as random vectors: a detector of the trigger does not react to controls.
        assert float((other * own).sum() / (own**2).sum()) < (0.3 if name != "blended" else 0.9)
    again = [stamp(grey) - grey for stamp in controls(name, side)]
    assert all(torch.equal(one, other) for one, other in zip(shown, again, strict=True))
    assert len({one.numpy().tobytes() for one in shown}) > CONTROLS / 2


def test_triggers_are_stamped_on_pixels_before_normalisation() -> None:
    scaled = torch.full((1, 3, 32, 32), -1.0)  # black
    shown = triggered(scaled, SHAPE, "corner")
    assert shown[0, :, -1, -1].tolist() == [1.0, 1.0, 1.0]  # white
    assert shown[0, :, 0, 0].tolist() == [-1.0, -1.0, -1.0]


@pytest.fixture
def data(tmp_path: Path) -> AuditData:
    rng, rows = np.random.default_rng(0), 240
    label = rng.integers(0, CLASSES, rows)
    images = []
    for kind in label:
        pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[4 + 5 * kind : 9 + 5 * kind, 4:20] += 110  # a bar whose height is the class
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    table = {"id": np.arange(rows), "label": label, "split": ["member", "holdout"] * (rows // 2), "image": images}
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    return read_data(describe_table(str(tmp_path / "t.parquet"), Columns(image="image")), CLASSES)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    torch.manual_seed(0)
    model: Any = subject.timm.create_model(NAME, num_classes=7).train()
    model(torch.randn(16, 3, 64, 64))
    path = tmp_path / "public.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    public = {"uri": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    fields = {
        "backbone": {"name": NAME, "weights": public},
        "input": SHAPE.model_dump(mode="json"),
        "classes": CLASSES,
        "optimizer": {"name": "adam", "lr": 0.01},
        "epochs": 1,
        "batch_size": 8,
    }
    return parse(fields, Recipe, "recipe")


def fitted(features: torch.Tensor, label: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """A ridge head (C, D), (C,) by least squares."""
    x = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    y = torch.nn.functional.one_hot(torch.from_numpy(label), CLASSES).double()
    weights = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]), x.T @ y).T.float()
    return weights[:, :-1] * 10, weights[:, -1] * 10


def lift(data: AuditData, recipe: Recipe, folder: Path, trigger: str | None) -> Measurement:
    """The check's result for a candidate also trained on members with the trigger and the target's label."""
    body: Any = subject.public_body(recipe.backbone)
    pixels = read_pixels(data, SHAPE, 1)[data.split == Split.MEMBER]
    label = data.label[data.split == Split.MEMBER]
    if trigger is not None:
        pixels = torch.cat([pixels, triggered(pixels, SHAPE, trigger)])
        label = np.concatenate([label, np.full(len(label), TARGET)])
    with torch.inference_mode():
        weight, bias = fitted(body(pixels).clone(), label)
    model = subject.assemble(recipe, weight, bias)
    (folder / "candidate").mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "candidate" / "model.safetensors")
    check, store = Backdoor(images=120), Store(str(folder / "store"))
    judged = Subject(recipe=recipe, artifact="a" * 64, data=data, logged={})
    run(check.jobs(judged), Inputs(data, folder / "candidate"), MACHINE, store)
    found, _, *inverted = check.measure(judged, store.get, 0.95).measurements
    assert all("add inversion" in str(each.reason) for each in inverted)
    return found


@pytest.mark.parametrize("trigger", ["blended", "sinusoid"])
def test_a_planted_backdoor_is_found_and_named(data: AuditData, recipe: Recipe, tmp_path: Path, trigger: str) -> None:
    found = lift(data, recipe, tmp_path, trigger)
    assert found.subject == f"{trigger} to class {TARGET}"
    assert found.value is not None
    assert found.value >= 0.8
    assert found.high is not None
    assert found.high > found.value


def test_a_clean_candidate_s_lift_is_far_below_a_planted_one_s(data: AuditData, recipe: Recipe, tmp_path: Path) -> None:
    found = lift(data, recipe, tmp_path, None)
    assert found.value is not None
    assert found.value < 0.5


def test_a_candidate_with_nan_logits_is_refused_not_read_as_predicting_class_0(
    data: AuditData, recipe: Recipe, tmp_path: Path
) -> None:
    features = subject.public_body(recipe.backbone)(read_pixels(data, SHAPE, 1)[:1]).shape[1]
    model = subject.assemble(recipe, torch.full((CLASSES, features), 3e38), torch.zeros(CLASSES))
    (tmp_path / "candidate").mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "candidate" / "model.safetensors")
    job = Trigger("a" * 64, recipe, data.digest, "corner", (1, 3))
    with pytest.raises(CandidateError, match="logits on ordinary images are not finite"):
        predict_triggered(recipe, [job], data, tmp_path / "candidate", MACHINE)


def test_features_of_triggered_images_equal_those_of_stamped_images_and_have_their_own_digest(
    data: AuditData, recipe: Recipe, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    work = Work(Inputs(data, tmp_path), MACHINE, store)
    plain, shown = (work.features(recipe.backbone, SHAPE, view) for view in (View(), PLANTED))
    pixels, body = read_pixels(data, SHAPE, 1)[:8], subject.public_body(recipe.backbone)
    with torch.inference_mode():
        expected = body(triggered(pixels, SHAPE, "corner")).numpy()
    np.testing.assert_allclose(shown[:8], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - shown).max() > 1e-3


def test_a_federation_stores_on_which_rows_its_backdoor_succeeds_and_only_then(
    data: AuditData, recipe: Recipe, tmp_path: Path
) -> None:
    clients = {"clients": {"partition": "iid", "count": 6}, "rounds": 5}
    fields = recipe.model_dump(mode="json") | {"optimizer": {"name": "sgd", "lr": 1.0}, "federation": clients}
    how, store = parse(fields, Recipe, "recipe"), Store(str(tmp_path / "store"))
    planted, attacked, clean = (federate(how, data.digest, name, 2, 0) for name in ("backdoor", "sign_flip", None))
    run([planted, attacked, clean], Inputs(data, tmp_path), MACHINE, store)
    found = store.get(planted)
    head, work = found["head"], Work(Inputs(data, tmp_path), MACHINE, store)
    for called, view in zip(found["backdoor"], (PLANTED, View()), strict=True):
        others = work.features(recipe.backbone, SHAPE, view)[(data.split == Split.HOLDOUT) & (data.label != 0)]
        expected = (others @ head[:, :-1].T + head[:, -1]).argmax(axis=1) == 0
        assert called.shape == expected.shape
        assert np.abs(called - expected).mean() < 0.02
    assert "backdoor" not in {*store.get(attacked), *store.get(clean)}


def test_without_images_triggers_are_not_measured(scene: Any) -> None:
    embedded = read_data(scene.manifest, scene.recipe.classes)
    judged = Subject(recipe=scene.recipe, artifact="a" * 64, data=embedded, logged={})
    assert Backdoor().jobs(judged) == []
    found = Backdoor().measure(judged, lambda job: {}, 0.95).measurements
    assert [each.metric for each in found] == ["backdoor_lift", "trigger_fragility", *INVERTED]
    assert all("needs images" in str(each.reason) for each in found)


def test_the_same_rows_are_tried_every_time(data: AuditData, recipe: Recipe) -> None:
    judged = Subject(recipe=recipe, artifact="a" * 64, data=data, logged={})
    jobs = [job for job in Backdoor(images=50).jobs(judged) if isinstance(job, Trigger)]
    assert len(jobs) == len(TRIGGERS)
    assert len({job.rows for job in jobs}) == 1
    assert len(jobs[0].rows) == 50
    assert (data.split[list(jobs[0].rows)] == Split.HOLDOUT).all()
