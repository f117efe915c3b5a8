"""Hostile clients on real images: handwritten digits at ten sites, a packaged backbone, a federated head."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.robustness import Robustness
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.demo.packaged import lite0_weights, mnist_table
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Columns, describe_table, read_data
from privacy_gate.dossier.federation import Aggregator, Federation
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import Limit, Measurement, RuleTable, Status, judged_status

DROP, TAX = Limit(max=0.15), Limit(max=0.03)
"""The drop of the ready policy, which allows a tax of .05."""


def recipe(folder: Path, rule: Aggregator) -> Recipe:
    weights = lite0_weights(folder)
    public = PublicWeights(uri=str(weights), sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    return Recipe(
        backbone=Backbone(name="tf_efficientnet_lite0", weights=public),
        input=Input(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        classes=10,
        optimizer=Sgd(name="sgd", lr=0.03),
        epochs=1,
        batch_size=32,
        federation=Federation(rounds=60, steps=1, aggregator=rule),
    )


@pytest.mark.slow
def test_plain_averaging_is_blocked_and_the_same_recipe_with_a_robust_rule_passes_and_shows_its_tax(
    tmp_path: Path,
) -> None:
    table = mnist_table(tmp_path / "digits.parquet", members_per_class=120, holdout=2000, population=10)
    data: AuditData = read_data(describe_table(str(table), Columns(image="image", client="client")), 10)
    limits = {"byzantine_drop": {"max": DROP.max}, "robustness_tax": {"max": TAX.max}}
    check = parse({"check": "robustness", "alternatives": False, "seeds": 6, "limits": limits}, Robustness, "policy")
    store, found = Store(str(tmp_path / "store")), dict[str, dict[str, Measurement]]()
    tables: dict[str, RuleTable] = {}
    for rule in (Aggregator(), Aggregator(name="geometric_median", tolerates=2)):
        subject = Subject(recipe(tmp_path, rule), "0" * 64, data, {})
        missing: list[Any] = [job for job in check.jobs(subject) if not store.has(job)]
        run(missing, Inputs(data, tmp_path), Machine(device="cpu"), store)
        result = check.measure(subject, store.get, 0.95)
        found[rule.name] = {each.metric: each for each in result.measurements}
        tables[rule.name] = next(each for each in result.exhibits if isinstance(each, RuleTable))
    plain, robust = found["mean"], found["geometric_median"]
    assert judged_status(plain["byzantine_drop"], DROP) is Status.VIOLATED
    assert plain["robustness_tax"].value == 0
    assert judged_status(robust["byzantine_drop"], DROP) is Status.MET
    assert judged_status(robust["robustness_tax"], TAX) is Status.MET
    assert not tables["mean"].rules[0].passes
    assert tables["geometric_median"].rules[0].passes
