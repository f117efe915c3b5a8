"""Arrays stored for candidates and references equal the models' own outputs."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
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

from privacy_gate.arrays import Arrays
from privacy_gate.attacks.evidence import logit_scaled
from privacy_gate.compute.images import backbone as subject
from privacy_gate.compute.images.pixels import read_pixels
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.numerics import numerics, whole_float32
from privacy_gate.compute.run import RUNNERS, run
from privacy_gate.compute.training.judged import residual
from privacy_gate.compute.work import Inputs, Work
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.dataset import AuditData, Columns, Split, describe_table, read_data
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import UnavailableError, UndecidedError
from privacy_gate.jobs.digests import digest
from privacy_gate.jobs.kinds import EMBED_ROWS, Embed, Job, Score, embed_jobs, train_reference
from privacy_gate.store import Store, path_of

NAME, ROWS, CLASSES = "test_resnet", 24, 3
MACHINE = Machine(threads=1)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A small image model that also trains on mirrored and shifted images."""
    torch.manual_seed(0)
    model: Any = subject.timm.create_model(NAME, num_classes=7).train()
    model(torch.randn(16, 3, 64, 64))
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return parse(
        {
            "backbone": {
                "name": NAME,
                "weights": {"uri": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
            },
            "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
            "classes": CLASSES,
            "optimizer": {"name": "adam", "lr": 0.1},
            "epochs": 2,
            "batch_size": 4,
            "augmentation": {"flip": True, "shift": 3},
        },
        Recipe,
        "recipe",
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> AuditData:
    rng = np.random.default_rng(0)
    images = [png(pixels) for pixels in rng.integers(0, 256, (ROWS, 40, 40, 3), dtype=np.uint8)]
    table = {
        "id": [f"p{row}" for row in range(ROWS)],
        "label": [row % CLASSES for row in range(ROWS)],
        "split": ["member", "holdout", "population"] * (ROWS // 3),
        "image": images,
    }
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    return read_data(describe_table(str(tmp_path / "t.parquet"), Columns(image="image")), CLASSES)


def test_every_kind_of_job_has_a_runner() -> None:
    assert set(RUNNERS) == set(Job.__subclasses__())


def test_a_job_without_a_runner_is_refused_before_any_is_computed(recipe: Recipe, tmp_path: Path) -> None:
    jobs: Any = [Score("a" * 64, recipe, "d" * 64), object()]
    nothing: Any = None
    with pytest.raises(TypeError, match="nothing computes jobs of kind object: add a line to RUNNERS"):
        run(jobs, nothing, MACHINE, Store(str(tmp_path)))


class Watchful(Store):
    """A store that records torch's precision settings whenever a result arrives."""

    seen: set[tuple[bool, bool, str]]

    def put(self, job: Job, arrays: Arrays) -> None:
        self.seen.add(shortened())


def shortened() -> tuple[bool, bool, str]:
    backends = torch.backends
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_a_gpu_multiplies_and_convolves_whole_float32_and_the_caller_s_settings_come_back(
    products: str, scene: Any, tmp_path: Path
) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    store, default = Watchful(str(tmp_path / "store")), shortened()
    store.seen = set()
    torch.set_float32_matmul_precision(products)
    before = shortened()
    try:
        run([train_reference(scene.recipe, data.digest, 0)], Inputs(data, tmp_path), MACHINE, store)
        assert store.seen == {(False, False, "highest")}
        assert shortened() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert shortened() == default
    assert numerics(MACHINE)["float32"] == "ieee"


def test_precision_set_by_operation_is_restored() -> None:
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"  # from here on torch raises an error if its older interface is read
    try:
        with whole_float32():
            assert shortened() == (False, False, "highest")
        assert (convolutions.fp32_precision, torch.backends.cudnn.rnn.fp32_precision) == ("ieee", "tf32")
    finally:
        convolutions.fp32_precision = before


def test_precision_set_through_the_older_interface_is_restored() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with whole_float32():
            assert shortened() == (False, False, "highest")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class Starved(Store):
    """A store that raises an out-of-memory error, or another one, when a result arrives."""

    def __init__(self, root: str, fault: Callable[[], object]) -> None:
        super().__init__(root)
        self._fault = fault

    def put(self, job: Job, arrays: Arrays) -> None:
        self._fault()


class Pruned(Store):
    """A store that deletes features as soon as they are stored."""

    def put(self, job: Job, arrays: Arrays) -> None:
        super().put(job, arrays)
        if isinstance(job, Embed):
            self.place.remove(path_of(digest(job)))


def test_a_result_deleted_before_use_is_computed_by_the_next_run(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    jobs, inputs = [train_reference(recipe, data.digest, 0)], Inputs(data, tmp_path)
    with pytest.raises(UnavailableError, match="Embed was deleted before it was used; run the same") as caught:
        run(jobs, inputs, MACHINE, Pruned(str(tmp_path / "store")))
    assert caught.value.exit_code == 6
    store = Store(str(tmp_path / "store"))
    run(jobs, inputs, MACHINE, store)
    assert store.has(jobs[0])


class Shared(Store):
    """A store into which another process puts the last job's result as soon as the first is stored."""

    def __init__(self, root: str, theirs: Job, arrays: Arrays) -> None:
        super().__init__(root)
        self.ours: list[Job] = []
        self._theirs, self._arrays = theirs, arrays

    def put(self, job: Job, arrays: Arrays) -> None:
        self.ours.append(job)
        super().put(job, arrays)
        super().put(self._theirs, self._arrays)


def test_features_that_another_shard_stores_meanwhile_are_not_computed_again(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    jobs = embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, recipe.views)
    alone = Store(str(tmp_path / "alone"))
    run(jobs, Inputs(data, tmp_path), MACHINE, alone)
    shared, shown = Shared(str(tmp_path / "shared"), jobs[-1], alone.get(jobs[-1])), list[tuple[str, int, int]]()
    # One image per batch: a job begins when nearly all batches of the previous job are done.
    how = Machine(threads=1, batch=1)
    run(jobs, Inputs(data, tmp_path), how, shared, lambda *progress: shown.append(progress))
    assert (shared.ours, shown[-1]) == (jobs[:-1], ("embed images", len(jobs) * ROWS, len(jobs) * ROWS))
    for job in jobs:
        np.testing.assert_allclose(shared.get(job)["features"], alone.get(job)["features"], rtol=1e-4, atol=1e-4)


def test_shards_compute_shared_features_in_different_orders(recipe: Recipe, tmp_path: Path) -> None:
    rows = 7 * EMBED_ROWS + 1
    ids, split = np.array([f"p{row}" for row in range(rows)]), np.full(rows, Split.MEMBER, dtype=np.int8)
    files = [png(np.full((32, 32, 3), shade, dtype=np.uint8)) for shade in range(256)]
    data = AuditData(ids, np.zeros(rows, dtype=np.int64), split, "d" * 64, image=lambda row: files[row % 256])
    store = Shared(str(tmp_path / "store"), Score("a" * 64, recipe, "d" * 64), {})
    found = Work(Inputs(data, tmp_path), Machine(threads=1), store).features(recipe.backbone, recipe.input)
    assert set(store.ours) == set(parts := embed_jobs(recipe.backbone, recipe.input, data.digest, rows))
    assert store.ours != parts  # fails by chance once in 8! runs
    np.testing.assert_allclose(found[:256], found[1024:1280], rtol=1e-4, atol=1e-4)  # each part in its place
    assert np.abs(found[:255] - found[1:256]).max() > 1e-2


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def driver_is_full() -> None:
    raise RuntimeError("CUDA error: out of memory")


def diverges() -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "fault", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 50), gpu_is_full, driver_is_full]
)
def test_lack_of_memory_is_reported_whatever_is_computed(
    fault: Callable[[], object], scene: Any, tmp_path: Path
) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    jobs = [train_reference(scene.recipe, data.digest, 0)]
    with pytest.raises(
        UnavailableError, match=r"out of memory: .+; stored results are kept: stop other processes"
    ) as caught:
        run(jobs, Inputs(data, tmp_path), MACHINE, Starved(str(tmp_path / "store"), fault))
    assert caught.value.exit_code == 6
    with pytest.raises(RuntimeError, match="a bug"):
        run(jobs, Inputs(data, tmp_path), MACHINE, Starved(str(tmp_path / "store"), diverges))


def test_confidence_is_the_mean_over_the_views_that_training_shows(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    weight, bias = torch.randn(CLASSES, 96), torch.randn(CLASSES)
    model = subject.assemble(recipe, weight, bias)
    (tmp_path / "candidate").mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        tmp_path / "candidate" / "model.safetensors",
    )
    inputs = Inputs(data, tmp_path / "candidate")
    score, reference = Score("a" * 64, recipe, data.digest), train_reference(recipe, data.digest, 0)
    run([score, reference], inputs, MACHINE, store)
    features = Work(inputs, MACHINE, store).views(recipe)
    assert features.shape == (10, ROWS, 96)
    logits = features @ weight.numpy().T + bias.numpy()
    found = store.get(score)
    np.testing.assert_allclose(found["logits"], logits[0], rtol=1e-3, atol=1e-3)
    expected = np.mean([logit_scaled(view, data.label) for view in logits], axis=0)
    np.testing.assert_allclose(found["confidence"], expected, rtol=1e-3, atol=1e-3)
    kept = store.get(reference)
    assert np.array_equal(kept["correct"], kept["logits"].argmax(axis=1) == data.label)
    assert not np.allclose(kept["confidence"], logit_scaled(kept["logits"], data.label), atol=1e-2)


def test_rows_taken_out_of_the_pool_are_in_no_training_set_and_the_share_stays(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    store, gone = Store(str(tmp_path / "store")), (0, 1, 4, 6)
    jobs = [train_reference(recipe, data.digest, index, without=gone) for index in range(4)]
    run(jobs, Inputs(data, tmp_path), MACHINE, store)
    included = np.stack([store.get(job)["included"] for job in jobs])
    assert not included[:, list(gone)].any()
    assert (included.sum(axis=1) == (ROWS * 2 // 3 - len(gone)) // 2).all()


def tuned(recipe: Recipe, adaptation: str) -> Recipe:
    """The same recipe, but it trains more than the head, and only on plain images."""
    return recipe.model_copy(update={"adaptation": adaptation, "augmentation": None, "epochs": 1})


def store_candidate(recipe: Recipe, folder: Path, name: str) -> torch.nn.Module:
    """A candidate whose head and tensor `name` differ from the public ones."""
    model = subject.assemble(recipe, torch.randn(CLASSES, 96), torch.randn(CLASSES))
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    tensors[name] = tensors[name] + 0.1
    model.load_state_dict(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return model.eval()


def test_a_film_candidate_is_scored_with_its_own_norm_layers(recipe: Recipe, data: AuditData, tmp_path: Path) -> None:
    how, store = tuned(recipe, "film"), Store(str(tmp_path / "store"))
    model = store_candidate(how, tmp_path / "candidate", "layer1.0.bn1.weight")
    score, reference = Score("a" * 64, how, data.digest), train_reference(how, data.digest, 3)
    run([score, reference], Inputs(data, tmp_path / "candidate"), MACHINE, store)
    pixels = read_pixels(data, how.input, 1) if how.input else None
    with torch.inference_mode():
        np.testing.assert_allclose(store.get(score)["logits"], model(pixels).numpy(), rtol=1e-4, atol=1e-4)
    kept = store.get(reference)
    assert kept["included"].sum() == ROWS // 3
    assert np.isfinite(kept["confidence"]).all()
    assert set(kept) == {"confidence", "residual", "correct", "included"}


def test_a_film_candidate_with_other_convolutions_contradicts_its_recipe(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    how = tuned(recipe, "film")
    store_candidate(how, tmp_path / "candidate", "layer1.0.conv1.weight")
    jobs = [Score("a" * 64, how, data.digest)]
    with pytest.raises(UndecidedError, match=r"adaptation 'film', but 1 of .*layer1.0.conv1.weight"):
        run(jobs, Inputs(data, tmp_path / "candidate"), MACHINE, Store(str(tmp_path / "store")))


def test_a_network_from_scratch_needs_no_public_weights_and_references_start_apart(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    how = tuned(recipe, "scratch").model_copy(update={"backbone": Backbone(name=NAME)})
    store = Store(str(tmp_path / "store"))
    jobs = [train_reference(how, data.digest, index) for index in range(3)]
    run(jobs, Inputs(data, tmp_path), MACHINE, store)
    kept = np.stack([store.get(job)["confidence"] for job in jobs])
    assert np.ptp(kept, axis=0).min() > 0


@pytest.mark.parametrize("adaptation", ["film", "full", "scratch"])
def test_a_network_s_gradient_span_is_kept_if_it_is_asked_for_and_changes_nothing_else(
    adaptation: str, recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    how, store = tuned(recipe, adaptation), Store(str(tmp_path / "store"))
    store_candidate(how, tmp_path / "candidate", "layer1.0.bn1.weight")
    plain = [Score("a" * 64, how, data.digest), *(train_reference(how, data.digest, index) for index in range(2))]
    kept = [replace(job, keeps=("span",)) for job in plain]
    run([*plain, *kept], Inputs(data, tmp_path / "candidate"), MACHINE, store)
    for without, with_span in zip(plain, kept, strict=True):
        bare, whole = store.get(without), store.get(with_span)
        assert set(whole) == {*bare, "span"}
        assert whole["span"].shape == (ROWS,)
        assert np.isfinite(whole["span"]).all()
        assert np.ptp(whole["span"]) > 0
        np.testing.assert_array_equal(bare["confidence"], whole["confidence"])


def test_heads_are_kept_if_they_are_asked_for_and_say_what_their_models_say(
    recipe: Recipe, data: AuditData, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    store_candidate(recipe, tmp_path / "candidate", "fc.bias")
    views = embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, recipe.views)
    jobs = [Score("a" * 64, recipe, data.digest, ("head",)), train_reference(recipe, data.digest, 0, keeps=("head",))]
    run([*views, *jobs], Inputs(data, tmp_path / "candidate"), MACHINE, store)
    features = np.concatenate([store.get(job)["features"] for job in views[: len(views) // len(recipe.views)]])
    for job in jobs:
        arrays = store.get(job)
        head = arrays["head"]
        assert head.shape == (CLASSES, features.shape[1] + 1)
        logits = features @ head[:, :-1].T + head[:, -1]
        np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-4, atol=1e-4)


def test_the_residual_is_the_distance_of_the_probabilities_from_the_label() -> None:
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(50, 7)).astype(np.float32) * 5, rng.integers(0, 7, 50)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        residual(logits, label), np.linalg.norm(p - np.eye(7)[label], axis=1), rtol=1e-3, atol=1e-6
    )
