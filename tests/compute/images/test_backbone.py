"""Features and heads do not depend on batches; unreadable images are reported; the candidate is checked strictly."""

import dataclasses
import hashlib
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from privacy_gate.compute.images import backbone as subject
from privacy_gate.compute.images.decoding import apply_view, decode, transform_of
from privacy_gate.compute.images.embed import embed
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Columns, describe_table, read_data
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import Augmentation, View
from privacy_gate.errors import CandidateError, DatasetError, UnavailableError, UndecidedError
from privacy_gate.jobs.kinds import Embed, embed_jobs
from privacy_gate.store import Store

timm = subject.timm  # importable beside a CPU build of torch only after the gate's own imports
NAME = "test_resnet"
ROWS = 21


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small timm model, with batch statistics that make its features differ."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=7).train()
    model(torch.randn(16, 3, 64, 64))
    path = tmp_path_factory.mktemp("public") / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture
def recipe(public: Path) -> Recipe:
    return parse(
        {
            "backbone": {
                "name": NAME,
                "weights": {"uri": str(public), "sha256": hashlib.sha256(public.read_bytes()).hexdigest()},
            },
            "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
            "classes": 3,
            "optimizer": {"name": "adam", "lr": 0.1},
            "epochs": 1,
            "batch_size": 4,
        },
        Recipe,
        "recipe",
    )


def encode(pixels: NDArray[Any], mode: str = "RGB", form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def photographs() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 40, 50, 3), dtype=np.uint8)
    return [encode(image) for image in pixels]


def audit_data(folder: Path, images: list[bytes]) -> AuditData:
    rows = len(images)
    table = {
        "id": [f"p{row}" for row in range(rows)],
        "label": [row % 3 for row in range(rows)],
        "split": ["member", "holdout"] * (rows // 2) + ["population"] * (rows % 2),
        "image": images,
    }
    parquet.write_table(pa.table(table), folder / "t.parquet")
    return read_data(describe_table(str(folder / "t.parquet"), Columns(image="image")), 3)


def features(recipe: Recipe, data: AuditData, machine: Machine, step: int = ROWS) -> NDArray[np.float32]:
    shape = recipe.input
    assert shape is not None
    jobs = [
        Embed(recipe.backbone, shape, View(), data.digest, first, min(first + step, data.rows))
        for first in range(0, data.rows, step)
    ]
    parts = list(embed(jobs, data, machine))
    assert [job for job, _, _ in parts] == jobs
    return np.concatenate([part for _, part, _ in parts])


def test_features_are_those_of_the_bare_timm_model(recipe: Recipe, public: Path, tmp_path: Path) -> None:
    data = audit_data(tmp_path, photographs())
    found = features(recipe, data, Machine(threads=1))
    model = timm.create_model(NAME, num_classes=7, checkpoint_path=str(public)).eval()
    model.reset_classifier(0)
    transform = timm.data.create_transform(
        input_size=(3, 32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0
    )
    images = torch.stack([transform(Image.open(io.BytesIO(image))) for image in photographs()])
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-4, atol=1e-5)


def test_a_view_mirrors_then_moves_and_repeats_the_edge() -> None:
    pixels = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(apply_view(pixels, View()), pixels)
    assert apply_view(pixels, View(flip=True))[0, 0, 0].tolist() == [3, 2, 1, 0]
    assert apply_view(pixels, View(down=1))[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert apply_view(pixels, View(right=-1))[0, 0, 0].tolist() == [1, 2, 3, 3]
    assert apply_view(pixels, View(flip=True, right=2))[0, 0, 0].tolist() == [3, 3, 3, 2]


def test_views_are_distinct_and_the_plain_image_comes_first() -> None:
    views = Augmentation(flip=True, shift=4).views
    assert views[0] == View()
    assert len(set(views)) == len(views) == 10
    assert Augmentation(flip=True).views == (View(), View(flip=True))


def test_features_of_a_view_are_those_of_the_transformed_image(recipe: Recipe, tmp_path: Path) -> None:
    mirrored = [encode(np.asarray(Image.open(io.BytesIO(image)))[:, ::-1]) for image in photographs()]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain, turned = audit_data(tmp_path / "a", photographs()), audit_data(tmp_path / "b", mirrored)
    jobs = embed_jobs(recipe.backbone, recipe.input, plain.digest, plain.rows, [View(flip=True)])
    ((_, found, _),) = embed(jobs, plain, Machine(threads=1))
    np.testing.assert_allclose(found, features(recipe, turned, Machine(threads=1)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("batch", "workers", "step"), [(1, 1, ROWS), (5, 3, ROWS), (64, 0, 4), (3, 2, 7)])
def test_features_depend_on_neither_batch_nor_workers_nor_blocks(
    recipe: Recipe, tmp_path: Path, batch: int, workers: int, step: int
) -> None:
    data = audit_data(tmp_path, photographs())
    expected = features(recipe, data, Machine(batch=16, threads=1))
    found = features(recipe, data, Machine(batch=batch, workers=workers, threads=1), step)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_content_hash_is_that_of_the_encoded_image(recipe: Recipe, tmp_path: Path) -> None:
    data = audit_data(tmp_path, photographs())
    ((_, _, content),) = embed(
        embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows), data, Machine(threads=1)
    )
    assert [row.tobytes() for row in content] == [hashlib.sha256(image).digest() for image in photographs()]


def test_unreadable_images_are_all_named_and_fail_only_their_own_block(recipe: Recipe, tmp_path: Path) -> None:
    images = photographs()
    images[2], images[3], images[17] = b"no image", images[3][:100], b""
    data = audit_data(tmp_path, images)
    shape = recipe.input
    assert shape is not None
    jobs = [Embed(recipe.backbone, shape, View(), data.digest, first, first + 7) for first in (0, 7, 14)]
    parts = embed(jobs, data, Machine(batch=4, threads=1))
    assert next(parts)[0] == jobs[1]
    with pytest.raises(DatasetError, match="3 images cannot be read: p2, p3, p17; repair or remove"):
        next(parts)


class Hungry(torch.nn.Module):
    """Returns mean colours; raises an out-of-memory error for more than a given number of images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return images.mean((2, 3))


def hungry_3(pretrained: bool = False, **_: Any) -> torch.nn.Module:
    return Hungry(3)


def hungry_0(pretrained: bool = False, **_: Any) -> torch.nn.Module:
    return Hungry(0)


class Counted(torch.nn.Module):
    """Computes nothing, and counts how many threads call it at once."""

    inside, most = 0, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Counted.inside += 1
        time.sleep(0.01)
        Counted.most = max(Counted.most, Counted.inside)
        Counted.inside -= 1
        return torch.zeros(len(images), 2)


def counted(pretrained: bool = False, **_: Any) -> torch.nn.Module:
    return Counted()


@pytest.fixture(scope="module")
def models() -> None:
    """Models that timm builds by name."""
    for model in (hungry_3, hungry_0, counted):
        timm.models.register_model(model)


@pytest.mark.usefixtures("models")
def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(recipe: Recipe, tmp_path: Path) -> None:
    data = audit_data(tmp_path, photographs())
    how = recipe.model_copy(update={"backbone": Backbone(name="hungry_3")})
    expected = features(how, data, Machine(batch=3, threads=1))
    assert expected.shape == (ROWS, 3)
    np.testing.assert_array_equal(features(how, data, Machine(batch=16, threads=1)), expected)


@pytest.mark.usefixtures("models")
def test_a_gpu_is_used_by_one_thread_at_a_time(recipe: Recipe, tmp_path: Path) -> None:
    data = audit_data(tmp_path, photographs())
    how = recipe.model_copy(update={"backbone": Backbone(name="counted")})
    features(how, data, Machine(device="meta", workers=4, batch=1))  # torch's device without computation
    assert Counted.most == 1


def test_a_gpu_is_fed_by_one_thread_per_usable_core() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert Machine(device="meta").decoders() == min(16, cores or 1)
    assert Machine(device="meta", workers=5).decoders() == 5
    assert Machine(device="meta", workers=0).decoders() == 1
    assert Machine(device="cpu", workers=5, threads=3).decoders() == 3


def test_jobs_of_several_inputs_and_backbones_each_get_their_own_features(recipe: Recipe, tmp_path: Path) -> None:
    data, machine, shape = audit_data(tmp_path, photographs()), Machine(threads=1), recipe.input
    assert shape is not None
    other = shape.model_copy(update={"size": 64})
    bare = Backbone(name=NAME)  # without public weights: random but always the same
    kinds = [(recipe.backbone, shape), (recipe.backbone, other), (bare, shape), (recipe.backbone, shape)]
    jobs = [Embed(*kind, View(), data.digest, 5 * place, 5 * place + 5) for place, kind in enumerate(kinds)]
    together = {job: part for job, part, _ in embed(jobs, data, machine)}
    assert together.keys() == set(jobs)
    for job in jobs:
        ((_, alone, _),) = embed([job], data, machine)
        np.testing.assert_array_equal(together[job], alone)


def test_the_next_part_is_computed_while_one_is_stored(recipe: Recipe, tmp_path: Path) -> None:
    data, read, begun = audit_data(tmp_path, photographs()), threading.Event(), ROWS // 2
    plain = data.image
    assert plain is not None
    assert recipe.input is not None

    def image(row: int) -> bytes:
        if row >= begun:
            read.set()
        return plain(row)

    spans = ((0, begun), (begun, ROWS))
    jobs = [Embed(recipe.backbone, recipe.input, View(), data.digest, *span) for span in spans]
    parts = embed(jobs, dataclasses.replace(data, image=image), Machine(device="cpu", threads=1, batch=1))
    next(parts)
    assert read.wait(timeout=60)
    next(parts)


@pytest.mark.usefixtures("models")
def test_too_little_memory_for_one_image_is_not_an_error_of_the_candidate(recipe: Recipe, tmp_path: Path) -> None:
    data = audit_data(tmp_path, photographs())
    jobs = embed_jobs(Backbone(name="hungry_0"), recipe.input, data.digest, data.rows)
    with pytest.raises(UnavailableError, match=r"out of memory: CUDA out of memory.*results are kept: stop other"):
        run(jobs, Inputs(data, tmp_path), Machine(threads=1), Store(str(tmp_path / "store")))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image in one of the formats"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>", "not an image in one of the formats"),
        (b"P6 10000 9000 255\n" + bytes(100), r"larger than 89,478,485 pixels: 10,000 x 9,000"),
        (b"P6 1000000 1000000 255\n" + bytes(100), "larger than 89,478,485 pixels"),
        (b"P6 100 100 255\n" + bytes(100), "damaged"),
    ],
)
def test_files_that_could_run_a_program_or_fill_memory_are_not_decoded(
    recipe: Recipe, image: bytes, expected: str
) -> None:
    assert recipe.input is not None
    with pytest.raises(DatasetError, match=expected):
        decode(image, transform_of(recipe.input))


def test_more_unreadable_images_than_fit_a_message_are_counted(recipe: Recipe, tmp_path: Path) -> None:
    data = audit_data(tmp_path, [b"no image"] * 24)
    with pytest.raises(DatasetError, match=r"24 images cannot be read: p0, .*, p19 and 4 more; repair"):
        features(recipe, data, Machine(threads=1))


def test_exif_orientation_is_not_applied(recipe: Recipe, tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(photographs()[0]))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    image.save(files[0], "PNG")
    image.save(files[1], "PNG", exif=turned)
    data = audit_data(tmp_path, [file.getvalue() for file in files] * 2)
    found = features(recipe, data, Machine(threads=1))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_image_mode_becomes_rgb(recipe: Recipe, mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = encode(pixels, mode, "TIFF" if mode == "CMYK" else "PNG")
    data = audit_data(tmp_path, [image] * 4)
    assert np.isfinite(features(recipe, data, Machine(threads=1))).all()


def test_sixteen_bit_greys_keep_their_range(recipe: Recipe, tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    shallow = encode((deep // 257).astype(np.uint8), "L")
    data = audit_data(tmp_path, [file.getvalue(), shallow] * 2)
    found = features(recipe, data, Machine(threads=1))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def candidate(recipe: Recipe, folder: Path, change: str | None = None) -> tuple[Path, torch.Tensor, torch.Tensor]:
    weight, bias = torch.randn(3, subject.public_body(recipe.backbone).num_features), torch.randn(3)  # type: ignore[arg-type]
    model = subject.assemble(recipe, weight, bias)
    if change:
        model.state_dict()[change].add_(1)
    torch.save(model.state_dict(), folder / "model.pth")
    return folder, weight, bias


def timms(shape: Input) -> Any:
    """timm's own transform: maps a PIL image to a scaled tensor (3, S, S)."""
    how = {"mean": shape.mean, "std": shape.std, "interpolation": shape.interpolation, "crop_pct": shape.crop}
    return timm.data.create_transform(input_size=(3, shape.size, shape.size), is_training=False, **how)


def test_the_candidate_s_head_on_cached_features_is_the_whole_model(recipe: Recipe, tmp_path: Path) -> None:
    folder, weight, bias = candidate(recipe, tmp_path)
    head = subject.candidate_head(folder, recipe)
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)
    data = audit_data(tmp_path, photographs())
    on_features = torch.from_numpy(features(recipe, data, Machine(threads=1))) @ weight.T + bias
    transform = timms(recipe.input)  # type: ignore[arg-type]
    images = torch.stack([transform(Image.open(io.BytesIO(image))) for image in photographs()])
    with torch.inference_mode():
        whole = subject.assemble(recipe, weight, bias)(images)
    torch.testing.assert_close(on_features, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [("bn1.running_mean", "only BatchNorm statistics drifted"), ("conv1.0.weight", "more tensors were trained")],
)
def test_a_body_that_differs_from_the_public_one_contradicts_the_recipe(
    recipe: Recipe, change: str, expected: str, tmp_path: Path
) -> None:
    names = subject.build(recipe.backbone, 3).state_dict()
    change = change if change in names else next(name for name in names if name.endswith(change.rpartition(".")[2]))
    folder, _, _ = candidate(recipe, tmp_path, change)
    with pytest.raises(UndecidedError, match=expected):
        subject.candidate_head(folder, recipe)


def test_public_weights_with_other_bytes_are_refused(recipe: Recipe, public: Path, tmp_path: Path) -> None:
    assert recipe.backbone.weights is not None
    wrong = recipe.backbone.weights.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CandidateError, match="name the weights that the candidate was fine-tuned from"):
        subject.public_body(recipe.backbone.model_copy(update={"weights": wrong}))


def test_public_weights_with_tensors_of_another_model_are_refused(public: Path, tmp_path: Path) -> None:
    tensors = {**load_file(public), "layer9.weight": torch.zeros(3)}
    save_file(tensors, tmp_path / "more.safetensors")
    sha256 = hashlib.sha256((tmp_path / "more.safetensors").read_bytes()).hexdigest()
    weights = PublicWeights(uri=str(tmp_path / "more.safetensors"), sha256=sha256)
    with pytest.raises(CandidateError, match=r"1 unexpected \(layer9.weight\)"):
        subject.public_tensors(Backbone(name=NAME, weights=weights))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_efficientnet_gn", "test_nfnet", "resnetv2_50x1_bit"]
)
def test_features_and_head_together_are_the_whole_model_in_every_family(name: str) -> None:
    backbone = Backbone.model_construct(name=name, weights=None)
    model, body = subject.build(backbone, 3), subject.build(backbone, 0)
    weight, bias = (model.get_parameter(part) for part in subject.head_names(model))
    body.load_state_dict({part: model.state_dict()[part] for part in body.state_dict()})
    image = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(body(image) @ weight.flatten(1).T + bias, model(image))


def test_an_architecture_without_one_linear_head_is_refused() -> None:
    model = subject.build(Backbone.model_construct(name="levit_128s", weights=None), 3)
    with pytest.raises(CandidateError, match="no linear head with a bias"):
        subject.head_names(model)


def test_an_input_size_that_the_backbone_does_not_take_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit3", num_classes=0).state_dict(), path)
    weights = PublicWeights(uri=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    vit = recipe.model_copy(update={"backbone": Backbone(name="test_vit3", weights=weights)})
    with pytest.raises(CandidateError, match=r"test_vit3 does not take images of 32 x 32 pixels: .*correct input.size"):
        features(vit, audit_data(tmp_path, photographs()), Machine(threads=1))


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(CandidateError, match="did you mean 'resnet50"):
        subject.build(Backbone.model_construct(name="resnet_50", weights=None), 3)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"weight": torch.zeros(2, 4)}, "expected 3 classes"),
        ({"a": torch.zeros(3, 4), "b": torch.zeros(3, 4)}, "expected one linear layer"),
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(2)}, "expected 3 classes"),
        ({"weight": torch.zeros(3, 4, 1)}, "expected one linear layer"),
    ],
)
def test_a_head_on_embeddings_is_one_linear_layer(
    tensors: dict[str, torch.Tensor], expected: str, recipe: Recipe, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    identity = recipe.model_copy(update={"backbone": Backbone(name="identity"), "input": None})
    with pytest.raises(CandidateError, match=expected):
        subject.candidate_head(tmp_path, identity)


def test_the_input_of_a_recipe_is_read_by_name() -> None:
    assert Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3).interpolation == "bicubic"
