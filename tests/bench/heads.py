"""Stacked training of reference heads against a plain PyTorch loop, on this machine.

Run it where nothing else runs. Every round measures all contenders one after the other, so that a neighbour's
load meets all of them; the table gives medians over rounds, and the ratio is the median of the rounds'
ratios. Beside elapsed seconds stand seconds of CPU time: an elapsed time well above CPU time / threads means that
something else ran. Useful work is 4 x C x D flops per example and epoch (logits and gradient); the yardstick is
the rate of torch's own square matrix products. No exact training in float32 by these products is faster.

The roofline is the later of two ends: all flops at that rate, or all bytes at the rate of a large copy. Counted are the
bytes that a step must move where no cache holds them: each example once, parameters for the logits, the gradient out
and in, and what Adam reads and writes (parameters and two moments). On a CPU whose caches hold a head it can be beaten.

"windowed products" is the least that windowed batches would cost: all references walk one order of the pool, a step
is two matrix products of a window of twice the batch with all heads at once, softmax, mask and optimiser. It trains
nothing that is kept. Half of its flops are wasted on rows that a reference does not train on.
"""

import argparse
import importlib.util
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from privacy_gate.compute.images.backbone import TrainedHead
from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, train_heads
from privacy_gate.compute.training.optimizers import stepper
from privacy_gate.compute.training.stack import padded
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import included


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("examples", 1280, "rows each reference is trained on; the pool is twice as large"),
        ("features", 1280, "D"),
        ("classes", 10, "C"),
        ("epochs", 30, ""),
        ("batch", 64, "mini-batch size"),
        ("references", 64, "references trained stacked"),
        ("alone", 1, "references the plain loop trains, each round and number of threads"),
        ("rounds", 5, "how often everything is measured"),
        ("threads", torch.get_num_threads(), "most CPU threads"),
        ("block", 0, "references per block; 0: chosen"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    arguments = parser.parse_args()
    print(describe(arguments))
    measure(argparse.Namespace(**vars(arguments) | {"epochs": 1, "references": 2}))  # first calls import and allocate
    rounds = [measure(arguments) for _ in range(arguments.rounds)]
    report(arguments, rounds)


def describe(arguments: argparse.Namespace) -> str:
    shape = " ".join(f"{name}={value}" for name, value in vars(arguments).items())
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{names[0]}, {len(names)} cores" if names else model
    gpu = f"; {torch.cuda.get_device_name(arguments.device)}" if arguments.device.startswith("cuda") else ""
    return f"{model}{gpu}; torch {torch.__version__}\n{shape}\n"


@dataclass(frozen=True)
class Spent:
    """Seconds per reference: elapsed, and of CPU time over all threads."""

    elapsed: float
    cpu: float


@dataclass(frozen=True)
class Rates:
    """Of the machine: products in flop/s, copies in bytes read and written a second."""

    gemm: float
    copy: float


def measure(arguments: argparse.Namespace) -> tuple[Rates, dict[str, Spent]]:
    """One round: what the machine can do, and what each contender spent."""
    rows = 2 * arguments.examples
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((rows, arguments.features), dtype=np.float32), 0)
    label = rng.integers(0, arguments.classes, rows)
    recipe = Recipe.model_validate_json(
        f'{{"backbone": {{"name": "identity"}}, "classes": {arguments.classes}, "epochs": {arguments.epochs},'
        f'"batch_size": {arguments.batch}, "optimizer": {{"name": "adam", "lr": 0.001}}}}'
    )
    pool = np.ones(rows, dtype=bool)
    subsets = [
        (index, np.flatnonzero(included(index, pool, arguments.examples))) for index in range(arguments.references)
    ]
    machine = Machine(device=arguments.device, block=arguments.block or None, threads=arguments.threads)
    x, y = torch.from_numpy(features).to(arguments.device), torch.from_numpy(label).to(arguments.device)
    heads: list[TrainedHead] = []

    def one_by_one() -> None:
        for index, chosen in subsets[: arguments.alone]:
            plain_loop(x, y, recipe, index, chosen)

    rate, found = Rates(gemm_rate(arguments), copy_rate(arguments)), {}
    for threads in sorted({1, arguments.threads}):
        torch.set_num_threads(threads)
        found[f"plain loop, {threads} thread(s)"] = spent(one_by_one, arguments.alone, arguments.device)
    found["stacked"] = spent(
        lambda: heads.extend(train_heads(x, label, recipe, subsets, machine)), len(subsets), arguments.device
    )
    found["windowed products"] = spent(lambda: windowed(x, y, recipe, arguments), len(subsets), arguments.device)
    found["its confidences"] = spent(lambda: confidences(x, label, heads, machine), len(subsets), arguments.device)
    return rate, found


@torch.no_grad()
def windowed(x: torch.Tensor, y: torch.Tensor, recipe: Recipe, arguments: argparse.Namespace) -> None:
    """As many steps as the stacked references make, each on one window of the pool for all of them."""
    x, window = padded(x, x.device, x.dtype), 2 * recipe.batch_size
    parameters = x.new_zeros(arguments.references * recipe.classes, x.shape[1])
    gradient = torch.zeros_like(parameters)
    step = stepper(parameters, gradient, recipe.optimizer)
    mask = (torch.rand(arguments.references, 1, window, device=x.device) < 0.5).to(x) / recipe.batch_size
    minus_one = x.new_full((arguments.references, 1, window), -1.0)
    for _ in range(recipe.epochs):
        for first in range(0, len(x), window):
            part = x[first : first + window]
            error = torch.mm(parameters, part.T).view(arguments.references, recipe.classes, -1).softmax(1)
            size = error.shape[2]
            truth = y[first : first + window].expand(arguments.references, 1, -1)
            error.scatter_add_(1, truth, minus_one[..., :size])
            error *= mask[..., :size]
            torch.mm(error.view(len(parameters), size), part, out=gradient)
            step(recipe.optimizer.lr)


def spent(work: Callable[[], object], references: int, device: str) -> Spent:
    elapsed, cpu = time.perf_counter(), time.process_time()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return Spent((time.perf_counter() - elapsed) / references, (time.process_time() - cpu) / references)


def gemm_rate(arguments: argparse.Namespace) -> float:
    """The best rate of several sizes, flop/s."""
    torch.set_num_threads(arguments.threads)
    rates = []
    for size in (512, 1024, 2048) if arguments.device == "cpu" else (4096, 8192):
        left = torch.randn(size, size, device=arguments.device)
        for _ in range(3):
            rates.append(2 * size**3 / spent(partial(torch.mm, left, left), 1, arguments.device).elapsed)
    return max(rates)


def copy_rate(arguments: argparse.Namespace) -> float:
    """The best of several copies of 256 MiB, bytes read and written a second."""
    torch.set_num_threads(arguments.threads)
    source = torch.zeros(1 << 26, device=arguments.device)
    target = torch.empty_like(source)
    elapsed = min(spent(partial(target.copy_, source), 1, arguments.device).elapsed for _ in range(6))
    return 2 * source.nbytes / elapsed


def counted_bytes(arguments: argparse.Namespace) -> float:
    """What one reference must move: see above."""
    steps = -(-arguments.examples // arguments.batch) * arguments.epochs
    head = 4 * arguments.classes * (arguments.features + 1)
    return steps * 9 * head + 4 * arguments.features * arguments.examples * arguments.epochs


def report(arguments: argparse.Namespace, rounds: list[tuple[Rates, dict[str, Spent]]]) -> None:
    work = 4 * arguments.classes * arguments.features * arguments.examples * arguments.epochs
    print(f"{'per reference':26}{'s':>10}{'CPU s':>10}{'useful GFLOP/s':>16}{'share of GEMM rate':>20}")
    for name in rounds[0][1]:
        elapsed = median(found[name].elapsed for _, found in rounds)
        line = f"{name:26}{elapsed:10.4f}{median(found[name].cpu for _, found in rounds):10.4f}"
        if name in ("stacked", "windowed products") or name.startswith("plain"):
            share = median(work / found[name].elapsed / rates.gemm for rates, found in rounds)
            line += f"{work / elapsed / 1e9:16.1f}{share:20.1%}"
        print(line)
    ratios = sorted(
        min(spent.elapsed for name, spent in found.items() if name.startswith("plain")) / found["stacked"].elapsed
        for _, found in rounds
    )
    thrift = median(
        min(spent.cpu for name, spent in found.items() if name.startswith("plain")) / found["stacked"].cpu
        for _, found in rounds
    )
    rate = median(rates.gemm for rates, _ in rounds)
    best = median(
        min(spent.elapsed for name, spent in found.items() if name.startswith("plain")) * rates.gemm / work
        for rates, found in rounds
    )
    moved = counted_bytes(arguments)
    roof = median(max(work / rates.gemm, moved / rates.copy) / found["stacked"].elapsed for rates, found in rounds)
    print(f"\nGEMM rate {rate / 1e9:.0f} GFLOP/s, where useful work alone would be {best:.0f} x the plain loop")
    bandwidth = median(rates.copy for rates, _ in rounds)
    print(
        f"{moved / work:.2f} bytes a flop; copies at {bandwidth / 1e9:.0f} GB/s; stacked at {roof:.0%} of the roofline"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory {peak:,.0f} MiB, torch and the plain loops included")
    spread = f"rounds: {ratios[0]:.1f} to {ratios[-1]:.1f}"
    print(f"stacked is {median(ratios):.1f} times as fast as the best plain loop ({spread})")
    print(f"and spends {thrift:.1f} times less CPU time, which neighbours disturb less")


def load_plain_loop() -> Callable[..., torch.nn.Linear]:
    path = Path(__file__).parents[1] / "plain.py"
    spec = importlib.util.spec_from_file_location("plain", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loop: Callable[..., torch.nn.Linear] = module.plain_loop
    return loop


plain_loop = load_plain_loop()

if __name__ == "__main__":
    keep_freed_memory()  # as the gate does, for all contenders alike
    main()
