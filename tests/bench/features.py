"""Images a second through the frozen backbone: the gate, which also reads and checks the files, and bare timm.

Bare timm: the model alone on pixels decoded beforehand, at its best of several batch sizes, with all threads inside one
product and with a thread for each batch. The gate: encoded images in, features and content hashes out; once with its
start, which reads the weights, builds the model and tries it, and once without it: what an eighth of the images takes
is subtracted. All in one run, turn by turn; the ratio is the median of the turns' ratios. Run it where nothing else
runs; where something does, CPU time tells more.
"""

import argparse
import hashlib
import io
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from privacy_gate.compute.images import backbone as backbones
from privacy_gate.compute.images.decoding import decode, scaled, transform_of
from privacy_gate.compute.images.embed import embed
from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.compute.machine.device import Machine
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.jobs.kinds import embed_jobs

GATE, STEADY = "gate, files to features", "gate, without its start"


@dataclass(frozen=True)
class Spent:
    """Seconds for some images, elapsed and of CPU time over all threads."""

    elapsed: float
    cpu: float
    images: int

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.elapsed - other.elapsed, self.cpu - other.cpu, self.images - other.images)


def spent(work: Callable[[], object], images: int) -> Spent:
    elapsed, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - elapsed, time.process_time() - cpu, images)


def photographs(count: int) -> list[bytes]:
    """JPEG files of 256 pixels, about as hard to decode as photographs."""
    rng, payloads = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        payloads.append(file.getvalue())
    return payloads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm (default tf_efficientnet_lite0)")
    parser.add_argument("--size", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--images", type=int, default=512, help="(default 512)")
    parser.add_argument("--turns", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--device", default="cpu", help="(default cpu)")
    arguments = parser.parse_args()
    payloads = photographs(arguments.images)
    torch.manual_seed(0)
    model: Any = backbones.timm.create_model(arguments.model, num_classes=0).eval().to(arguments.device)
    shape = Input(size=arguments.size, mean=(0.5,) * 3, std=(0.5,) * 3)
    with tempfile.TemporaryDirectory() as folder:
        contenders = bare(model, payloads, shape, arguments.device)
        few = max(1, arguments.images // 8)
        begin, contenders[GATE] = (
            gate(model, payloads[:count], shape, arguments, Path(folder)) for count in (few, arguments.images)
        )
        for work in (begin, *contenders.values()):
            work()  # first calls import, allocate and choose kernels
        turns = []
        for _ in range(arguments.turns):
            turn = {name: spent(work, arguments.images) for name, work in contenders.items()}
            turns.append({**turn, STEADY: turn[GATE] - spent(begin, few)})
    report(arguments, turns)


def bare(model: Any, payloads: list[bytes], shape: Input, device: str) -> dict[str, Callable[[], object]]:
    """timm alone on decoded pixels: with all threads inside one product, and with a thread for each batch."""
    transform, threads = transform_of(shape), torch.get_num_threads()
    pixels = scaled([decode(payload, transform) for payload in payloads], shape)

    def forward(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = model(batch.to(device, memory_format=torch.channels_last)).cpu()
        return out

    def whole(size: int) -> None:
        for batch in pixels.split(size):
            forward(batch)

    def side_by_side(size: int) -> None:
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(forward, pixels.split(size)))
        finally:
            torch.set_num_threads(threads)

    return {
        f"timm, {how.__name__.replace('_', ' ')}, batch {size}": partial(how, size)
        for how in (whole, side_by_side)
        for size in (4, 8, 32)
    }


def gate(
    model: Any, payloads: list[bytes], shape: Input, arguments: argparse.Namespace, folder: Path
) -> Callable[[], object]:
    """Encoded images in, features and content hashes out, with the same weights."""
    path, rows = folder / "weights.safetensors", len(payloads)
    save_file({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, path)
    public = PublicWeights(uri=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    split, ids = np.full(rows, Split.HOLDOUT, dtype=np.int8), np.array([str(row) for row in range(rows)])
    data = AuditData(ids, np.zeros(rows, dtype=np.int64), split, "d" * 64, image=payloads.__getitem__)
    jobs = embed_jobs(Backbone(name=arguments.model, weights=public), shape, data.digest, rows)
    return lambda: list(embed(jobs, data, Machine(device=arguments.device)))


def report(arguments: argparse.Namespace, turns: list[dict[str, Spent]]) -> None:
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}")
    batch = Machine(device=arguments.device).images(arguments.size)
    print(f"{arguments.model} at {arguments.size} px, {arguments.images} JPEGs of 256 px, batch of the gate {batch}\n")
    for name in turns[0]:
        rate, cost = (
            median(of(found[name]) for found in turns)
            for of in (lambda one: one.images / one.elapsed, lambda one: 1000 * one.cpu / one.images)
        )
        print(f"{name:40}{rate:10.1f} images/s{cost:10.2f} CPU ms an image")
    print()
    for name in (GATE, STEADY):
        for what in ("elapsed", "cpu"):
            ratios = sorted(best(found, what) / each(found[name], what) for found in turns)
            spread = f"turns: {ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{name}, against the best of timm, by {what} time: {median(ratios):.2f} ({spread})")


def each(one: Spent, what: str) -> float:
    """Seconds an image."""
    return float(getattr(one, what)) / one.images


def best(found: dict[str, Spent], what: str) -> float:
    """Seconds an image of bare timm, at its best."""
    return min(each(one, what) for name, one in found.items() if name.startswith("timm"))


if __name__ == "__main__":
    keep_freed_memory()  # as the gate does, for all contenders alike
    main()
