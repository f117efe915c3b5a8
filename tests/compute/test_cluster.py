"""Jobs on a Ray cluster store the same bytes, whichever worker dies; every error keeps its exit code."""

import hashlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from privacy_gate.compute.cluster import Cluster, connected, divided, run_on_cluster
from privacy_gate.compute.images import backbone
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.numerics import numerics
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Columns, DataManifest, describe_table, read_data
from privacy_gate.dossier.recipe import CommandRecipe, Recipe, Trainer
from privacy_gate.errors import CandidateError, ConfigurationError, UnavailableError
from privacy_gate.jobs.batches import batches
from privacy_gate.jobs.kinds import REFERENCE_BLOCK, Job, Score, TrainControl, Trigger, embed_jobs, train_reference
from privacy_gate.progress import silent
from privacy_gate.store import Store

MACHINE = Machine(threads=1)
CLASSES = 3


def table(folder: Path, rows: int = 64) -> DataManifest:
    rng = np.random.default_rng(0)
    images = []
    for pixels in rng.integers(0, 256, (rows, 40, 40, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    columns = {
        "id": [f"p{row}" for row in range(rows)],
        "label": [row % CLASSES for row in range(rows)],
        "split": ["member", "holdout"] * (rows // 2),
        "image": images,
    }
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return describe_table(str(folder / "t.parquet"), Columns(image="image"))


def public_recipe(folder: Path) -> Recipe:
    torch.manual_seed(0)
    model: Any = backbone.timm.create_model("test_resnet", num_classes=7)
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    weights = {"uri": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    fields = {
        "backbone": {"name": "test_resnet", "weights": weights},
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": CLASSES,
        "optimizer": {"name": "adam", "lr": 0.1},
        "epochs": 3,
        "batch_size": 4,
    }
    return parse(fields, Recipe, "recipe")


def candidate(recipe: Recipe, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(CLASSES, 96, generator=generator)
    tensors = backbone.assemble(recipe, weight, weight[:, 0]).state_dict()
    (folder / "candidate" / "data").mkdir(parents=True)
    path = folder / "candidate" / "data" / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return folder / "candidate"


def by_program(scene: Any, data: AuditData, script: str, folder: Path) -> CommandRecipe:
    """A recipe whose references a short program trains; it appends the index of each to `calls`."""
    (folder / "train.py").write_text(PROGRAM.format(folder=str(folder), rows=data.rows) + script)
    fields = {name: getattr(scene.recipe, name) for name in Recipe.model_fields} | {"adaptation": "command"}
    trainer = Trainer(command=(sys.executable, str(folder / "train.py")), timeout_s=60.0)
    return CommandRecipe(**fields, trainer=trainer, table=scene.manifest.table.uri)


PROGRAM = """
import os, signal, sys
import numpy as np
said = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def finish():
    np.savez(said["--output"], logits=np.random.default_rng(int(said["--seed"])).normal(size=({rows}, 5)))
with open("{folder}/calls", "a") as calls:
    calls.write(said["--seed"] + "\\n")
"""
DIES_ONCE = """
if said["--seed"] == "5" and open(calls.name).read().split().count("5") == 1:
    os.kill(os.getppid(), signal.SIGKILL)  # the worker
    sys.exit()
finish()
"""


def stored(folder: Path) -> dict[str, bytes]:
    """The store's files and their bytes: equal files mean equal results."""
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_references_are_batched_by_index_whichever_are_requested(scene: Any, tmp_path: Path) -> None:
    jobs: list[Job] = [train_reference(scene.recipe, "d" * 64, index) for index in range(100)]
    whole = batches(jobs)
    assert [len(batch) for batch in whole] == [REFERENCE_BLOCK] * 6 + [4]
    alone = by_program(scene, read_data(scene.manifest, 5), "", tmp_path)
    assert len(batches([train_reference(alone, "d" * 64, index) for index in range(20)])) == 20
    half = batches(jobs[REFERENCE_BLOCK * 2 :])
    assert half == whole[2:]
    assert [job for batch in batches([Score("a" * 64, scene.recipe, "d" * 64), *jobs]) for job in batch][1:] == jobs


def test_features_are_batched_by_blocks_of_rows(tmp_path: Path) -> None:
    recipe = public_recipe(tmp_path)
    jobs: list[Job] = [*embed_jobs(recipe.backbone, recipe.input, "d" * 64, 5000)]
    assert [len(batch) for batch in batches(jobs)] == [8, 8, 4]
    assert [job for batch in batches(jobs) for job in batch] == jobs


@pytest.mark.parametrize(
    ("rows", "slots", "sizes"),
    [(2048, 1, [4, 4]), (2048, 2, [2] * 4), (2048, 100, [1] * 8), (5000, 1, [8, 8, 4]), (5000, 2, [4] * 4 + [2] * 2)],
)
def test_features_are_divided_until_every_worker_has_some(
    tmp_path: Path, rows: int, slots: int, sizes: list[int]
) -> None:
    recipe = public_recipe(tmp_path)
    jobs: list[Job] = [*embed_jobs(recipe.backbone, recipe.input, "d" * 64, rows)]
    parts = divided([jobs[first : first + 8] for first in range(0, len(jobs), 8)], slots)
    assert [len(part) for part in parts] == sizes
    assert [job for part in parts for job in part] == jobs


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [("auto", 0, "cpu"), ("cpu", 0, "cpu"), ("auto", 0.5, "cuda"), ("cuda", 2, "cuda")],
)
def test_a_task_computes_on_the_device_that_ray_assigns(device: str, gpus: float, found: str) -> None:
    assert Cluster(gpus_per_task=gpus).machine(Machine(device=device)).device == found


def test_a_gpu_task_takes_two_cores_unless_workers_is_set() -> None:
    assert Cluster(gpus_per_task=1).machine(Machine()).workers == 2
    assert Cluster(gpus_per_task=1).machine(Machine(workers=5)).workers == 5


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cpu", 0.5), ("cuda:1", 1)])
def test_a_device_that_contradicts_the_share_of_a_gpu_is_refused(device: str, gpus: float) -> None:
    with pytest.raises(ConfigurationError, match=f"--device {device} with --gpus-per-task"):
        Cluster(gpus_per_task=gpus).machine(Machine(device=device))


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf")])
def test_a_share_of_a_gpu_that_ray_cannot_give_is_refused(gpus: float) -> None:
    with pytest.raises(ConfigurationError, match="--gpus-per-task"):
        Cluster(gpus_per_task=gpus)


@pytest.mark.parametrize("address", ["nonsense", "local", "http://head:1", "head:", ":1", "head:port", ""])
def test_an_invalid_cluster_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write ray://host:port"):
        Cluster(address)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_cluster_that_does_not_answer_is_reported_at_once(form: str) -> None:
    if not importlib.util.find_spec("ray"):
        pytest.skip("Ray is not installed")
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = form.format(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UnavailableError, match=r"cannot reach .*refused"), connected(Cluster(address)):
            pass


def test_without_ray_the_message_names_the_extra(scene: Any, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['ray'] = None\n"  # as if it were not installed
        "from pathlib import Path\n"
        "from privacy_gate.compute.cluster import *\n"
        "try: run_on_cluster([], None, 2, Path('.'), Machine(), Store('store'), Cluster())\n"
        "except ConfigurationError as error: print(error.exit_code, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 --engine ray: Ray is not installed: pip install 'privacy-gate[ray]'"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two workers on this machine that no other machine can reach."""
    if not importlib.util.find_spec("ray"):
        pytest.skip("Ray is not installed")
    with connected(Cluster(), cpus=2) as ray:
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
        # Workers run at normal priority, so they do not wait for other processes.
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
        yield ray


@pytest.mark.slow
def test_a_cluster_stores_the_same_files_as_this_machine(ray: Any, tmp_path: Path) -> None:
    manifest, recipe = table(tmp_path), public_recipe(tmp_path)
    data, folder = read_data(manifest, CLASSES), candidate(recipe, tmp_path)
    jobs: list[Job] = [
        *embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows),
        Score("a" * 64, recipe, data.digest),
        Trigger("a" * 64, recipe, data.digest, "corner", (1, 3, 5)),
        TrainControl(recipe.backbone, recipe.input, data.digest),
        *(train_reference(recipe, data.digest, index) for index in range(40)),
    ]
    here, far = Store(str(tmp_path / "here"), numerics(MACHINE)), Store(str(tmp_path / "far"))
    run(jobs, Inputs(data, folder), MACHINE, here)
    seen: list[tuple[str, int, int]] = []
    run_on_cluster(jobs, manifest, CLASSES, folder, MACHINE, far, Cluster(), lambda *progress: seen.append(progress))
    assert stored(tmp_path / "far") == stored(tmp_path / "here")
    assert len(stored(tmp_path / "far")) == len(jobs)
    assert [each for each in seen if each[0] == "embed images"] == [("embed images", 1, 1)]
    assert seen[-1] == ("train and score", 43, 43)


def workers() -> list[int]:
    """The processes that run a task for the cluster started by this process."""
    parent, title = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # the process has ended meanwhile
            continue

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parent and is_ours(parent[pid]))

    return [pid for pid, words in title.items() if words.startswith("ray::_do") and is_ours(pid)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers by /proc")
@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_block_changes_no_byte(
    ray: Any, scenes: Callable[..., Any], tmp_path: Path
) -> None:
    scene = scenes(tmp_path, members=500, holdout=500, features=512, epochs=40)
    data, one_by_one = read_data(scene.manifest, 5), Machine(threads=1, block=1)
    jobs: list[Job] = [train_reference(scene.recipe, data.digest, index) for index in range(48)]
    killed: list[tuple[int, dict[str, int]]] = []

    def ages() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "far").rglob("*.safetensors")}

    def kill_one() -> None:
        while len(ages()) < 3:  # out of 32 jobs that two workers are computing
            time.sleep(0.01)
        pid = workers()[0]
        os.kill(pid, signal.SIGKILL)
        killed.append((pid, ages()))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    run_on_cluster(jobs, scene.manifest, 5, tmp_path, one_by_one, Store(str(tmp_path / "far")), Cluster())
    killer.join(10)
    ((_, before),) = killed
    assert 3 <= len(before) < len(jobs)
    assert before.items() <= ages().items()  # stored results are not written again
    run(jobs, Inputs(data, tmp_path), one_by_one, Store(str(tmp_path / "here"), numerics(MACHINE)))
    assert stored(tmp_path / "far") == stored(tmp_path / "here")


@pytest.mark.slow
def test_a_worker_killed_by_its_program_repeats_only_that_reference(ray: Any, scene: Any, tmp_path: Path) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    recipe = by_program(scene, data, DIES_ONCE, tmp_path)
    jobs: list[Job] = [train_reference(recipe, data.digest, index) for index in range(20)]
    far = Store(str(tmp_path / "far"))
    run_on_cluster(jobs, scene.manifest, 5, tmp_path / "none", MACHINE, far, Cluster())
    calls = Counter(map(int, (tmp_path / "calls").read_text().split()))
    assert calls == {index: 1 + (index == 5) for index in range(20)}  # nothing stored was computed again
    run(jobs, Inputs(data, tmp_path), MACHINE, Store(str(tmp_path / "here"), numerics(MACHINE)))
    assert stored(tmp_path / "far") == stored(tmp_path / "here")


@pytest.mark.slow
def test_after_an_interrupt_only_missing_results_are_computed(ray: Any, scene: Any, tmp_path: Path) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    recipe = by_program(scene, data, "finish()", tmp_path)
    jobs: list[Job] = [train_reference(recipe, data.digest, index) for index in range(40)]
    far = Store(str(tmp_path / "far"))

    def interrupt(task: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(jobs, scene.manifest, 5, tmp_path, MACHINE, far, Cluster(), interrupt)
    before = {job for job in jobs if far.has(job)}
    assert 1 <= len(before) < len(jobs)
    (tmp_path / "calls").unlink()
    rest = [job for job in jobs if not far.has(job)]
    run_on_cluster(rest, scene.manifest, 5, tmp_path, MACHINE, far, Cluster())
    assert all(map(far.has, jobs))
    assert set(map(int, (tmp_path / "calls").read_text().split())) <= {job.index for job in rest}  # type: ignore[union-attr]


LINGERS = """
import time
begun = os.path.join(os.path.dirname(calls.name), "begun")
if said["--seed"] == "0":
    while not os.path.exists(begun):
        time.sleep(0.05)
    finish()
else:
    with open(begun + ".part", "w") as file:
        file.write(os.path.dirname(os.getcwd()))
    os.rename(begun + ".part", begun)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_cancelled_task_deletes_its_temporary_folder(ray: Any, scene: Any, tmp_path: Path) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    recipe = by_program(scene, data, LINGERS, tmp_path)
    jobs: list[Job] = [train_reference(recipe, data.digest, index) for index in range(2)]

    def interrupt(task: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    far = Store(str(tmp_path / "far"))
    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(jobs, scene.manifest, 5, tmp_path, MACHINE, far, Cluster(), interrupt)
    assert [far.has(job) for job in jobs] == [True, False]
    assert not Path((tmp_path / "begun").read_text()).exists()


@pytest.mark.slow
def test_errors_of_workers_keep_their_meaning(ray: Any, scene: Any, tmp_path: Path) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    (tmp_path / "candidate").mkdir()
    torch.save(torch.nn.Linear(7, 5), tmp_path / "candidate" / "model.pth")
    score: list[Job] = [Score("a" * 64, scene.recipe, data.digest)]
    with pytest.raises(CandidateError, match="head reads 7 features, the table has 256"):
        run_on_cluster(
            score, scene.manifest, 5, tmp_path / "candidate", MACHINE, Store(str(tmp_path / "far")), Cluster()
        )
    for _ in range(50):  # finished tasks are not cancelled: Ray would sometimes abort this process
        with pytest.raises(CandidateError):
            run_on_cluster(score, scene.manifest, 5, tmp_path / "candidate", MACHINE, Store("far"), Cluster())
    control: list[Job] = [TrainControl(scene.recipe.backbone, None, data.digest)]
    with pytest.raises(UnavailableError, match="this machine does not see 1 results that workers computed"):
        run_on_cluster(control, scene.manifest, 5, tmp_path, MACHINE, Store(f"memory://{tmp_path}"), Cluster())
    with pytest.raises(ConfigurationError, match="a task takes 9 CPUs and 0 GPUs, but this machine has 2 and 0"):
        run_on_cluster(
            control, scene.manifest, 5, tmp_path, Machine(threads=9), Store(str(tmp_path / "far")), Cluster()
        )


@pytest.mark.slow
def test_a_task_whose_workers_die_repeatedly_is_reported(ray: Any, scene: Any, tmp_path: Path) -> None:
    data = read_data(scene.manifest, scene.recipe.classes)
    recipe = by_program(scene, data, "os.kill(os.getppid(), signal.SIGKILL)", tmp_path)
    jobs: list[Job] = [train_reference(recipe, data.digest, 0)]
    with pytest.raises(UnavailableError, match="stored results are kept: run the same command to go on"):
        run_on_cluster(jobs, scene.manifest, 5, tmp_path, MACHINE, Store(str(tmp_path / "far")), Cluster(), silent)
    assert (tmp_path / "calls").read_text().split() == ["0"] * 4
