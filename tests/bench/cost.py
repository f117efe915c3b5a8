"""What references cost as their number, their examples and their epochs grow: points, slopes and a picture.

Every point trains heads anew, as the gate does. Sizes are visited from small to large and back, so that a
neighbour's load meets all of them; a point is the median of its visits. The slope is that of log seconds against log
size: 1 is linear. Small sizes cost less than linear growth foretells where fixed costs show.
    python tests/bench/cost.py --picture cost.svg
"""

import argparse
import platform
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import train_heads
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import included

USUAL = {"references": 64, "examples": 1280, "epochs": 10}
SIZES = {
    "references": (64, 128, 256, 512, 1024),
    "examples": (640, 1280, 2560, 5120, 10240),
    "epochs": (5, 10, 20, 40, 80),
}
FEATURES, CLASSES, BATCH = 256, 10, 64

Points = Mapping[str, Mapping[int, float]]
"""Seconds by what grows and by its size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=4, help="how often each size is measured (default 4)")
    parser.add_argument("--picture", type=Path, help="an SVG file to write")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"features {FEATURES}, classes {CLASSES}, batch {BATCH}; where nothing else is said, {USUAL}")
    seconds(USUAL)  # first calls import and allocate
    found = {name: measure(name, arguments.visits) for name in SIZES}
    for name, points in found.items():
        told = ", ".join(f"{size:,}: {taken:.3g} s" for size, taken in points.items())
        print(f"{name:11} slope {slope(points):.2f}   {told}")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    if arguments.picture:
        arguments.picture.write_text(picture(found))


def measure(name: str, visits: int) -> dict[int, float]:
    taken: dict[int, list[float]] = {size: [] for size in SIZES[name]}
    for visit in range(visits):
        for size in SIZES[name] if visit % 2 == 0 else reversed(SIZES[name]):
            taken[size].append(seconds({**USUAL, name: size}))
    return {size: median(times) for size, times in taken.items()}


def seconds(sizes: Mapping[str, int]) -> float:
    rows, rng = 2 * sizes["examples"], np.random.default_rng(0)
    x, y = rng.standard_normal((rows, FEATURES), dtype=np.float32), rng.integers(0, CLASSES, rows)
    recipe = Recipe(
        backbone=Backbone(name="identity"),
        classes=CLASSES,
        optimizer=Adam(name="adam", lr=1e-3),
        epochs=sizes["epochs"],
        batch_size=BATCH,
    )
    pool = np.ones(rows, dtype=bool)
    subsets = [
        (index, np.flatnonzero(included(index, pool, sizes["examples"]))) for index in range(sizes["references"])
    ]
    started = time.perf_counter()
    for _ in train_heads(x, y, recipe, subsets, Machine(device="cpu")):
        pass
    return time.perf_counter() - started


def slope(points: Mapping[int, float]) -> float:
    return float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0])


def picture(found: Points) -> str:
    """One panel for each thing that grows: measured points, and the line of slope 1 through their middle one."""
    width, height, gap = 230, 200, 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * (width + gap) + 10} {height + 70}" '
        'font-family="sans-serif" font-size="12" fill="#222" role="img" '
        'aria-label="Seconds against references, examples and epochs, all on lines of slope 1">'
    ]
    seconds_seen = [taken for points in found.values() for taken in points.values()]
    low, high = np.log(min(seconds_seen) / 1.3), np.log(max(seconds_seen) * 1.3)
    for panel, (name, points) in enumerate(found.items()):
        left, sizes = gap + panel * (width + gap), list(points)
        first, last = np.log(sizes[0] / 1.3), np.log(sizes[-1] * 1.3)

        def at(size: float, taken: float, left: float = left, first: float = first, last: float = last) -> str:
            x = left + width * (np.log(size) - first) / (last - first)
            return f"{x:.1f},{20 + height * (high - np.log(taken)) / (high - low):.1f}"

        parts.append(f'<rect x="{left}" y="20" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        middle = sizes[len(sizes) // 2]
        ends = " ".join(at(size, points[middle] * size / middle) for size in (sizes[0], sizes[-1]))
        parts.append(f'<polyline points="{ends}" fill="none" stroke="#999" stroke-dasharray="4 3"/>')
        for size, taken in points.items():
            x, y = at(size, taken).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#1f5fa8"/>')
            parts.append(f'<text x="{x}" y="{height + 36}" text-anchor="middle">{size:,}</text>')
            parts.append(f'<text x="{left - 4}" y="{float(y) + 4}" text-anchor="end">{taken:.2g}</text>')
        title = f"{name} (slope {slope(points):.2f})"
        parts.append(f'<text x="{left + width / 2}" y="{height + 56}" text-anchor="middle">{title}</text>')
    parts.append('<text x="4" y="12">seconds</text></svg>\n')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
