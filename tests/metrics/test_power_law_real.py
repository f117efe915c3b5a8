"""The power law on real images, through the gate's own check: handwritten digits, a packaged backbone, linear heads."""

import hashlib
from pathlib import Path

import pytest

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.power_law import PowerLaw
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.demo.packaged import lite0_weights, mnist_table
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import Columns, describe_table, read_data
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.store import Store
from privacy_gate.verdict.exhibits import LawPlot


@pytest.mark.slow
def test_more_digits_of_each_kind_leak_less_by_a_power_law(tmp_path: Path) -> None:
    weights = lite0_weights(tmp_path)
    public = PublicWeights(uri=str(weights), sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    recipe = Recipe(
        backbone=Backbone(name="tf_efficientnet_lite0", weights=public),
        input=Input(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        classes=10,
        optimizer=Adam(name="adam", lr=1e-3),
        epochs=30,
        batch_size=64,
    )
    table = mnist_table(tmp_path / "digits.parquet", members_per_class=64, holdout=640, population=10)
    manifest = describe_table(str(table), Columns(image="image"))
    data = read_data(manifest, recipe.classes)
    check = PowerLaw(references=32, divisors=(8, 4, 2, 1))
    subject, store = Subject(recipe, "0" * 64, data, {}), Store(str(tmp_path / "store"))
    run(check.jobs(subject), Inputs(data, tmp_path), Machine(device="cpu"), store)
    result = check.measure(subject, store.get, 0.95)
    law = next(plot for plot in result.exhibits if isinstance(plot, LawPlot) and plot.fpr == 0.1)
    slope = next(found for found in result.measurements if found.metric == "slope_at_0.1_fpr")
    assert law.shots == (8, 16, 32, 64)
    assert list(law.excess) == sorted(law.excess, reverse=True)
    assert slope.high is not None
    assert slope.high < 0
    assert float(slope.samples.partition("R^2 ")[2]) > 0.8
