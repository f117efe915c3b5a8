"""Federations whose clients train a network equal a plain torch loop over clients and their state dicts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.runners.federate import cell
from privacy_gate.compute.training import parts
from privacy_gate.compute.training.federated_networks import NetworkLearner, Roll
from privacy_gate.compute.training.networks import Images
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.errors import CandidateError
from privacy_gate.simulation.cells import UNIFORM, Draws, Privacy
from privacy_gate.simulation.local import Batches
from privacy_gate.simulation.partitions import class_shares
from privacy_gate.simulation.samples import Samples
from privacy_gate.simulation.simulator import Outcome, Study, simulate

Make = Callable[..., Recipe]
CNN, VIT = "test_efficientnet", "test_vit"
SIZE, ROWS, HELD, CLASSES = {CNN: 32, VIT: 160}, 40, 24, 3
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    (CNN, "full", {}),
    (CNN, "film", {}),
    (VIT, "lora", {"lora": {"rank": 2, "alpha": 4, "targets": ["attention", "mlp"]}}),
]


@pytest.fixture
def make(make: Make) -> Make:
    return partial(
        make,
        optimizer={"name": "sgd", "lr": 0.05, "weight_decay": 0.01},
        epochs=1,
        federation={"clients": {"partition": "iid", "count": 3}, "rounds": 3, "prox": 0.1},
    )


class Scene:
    """Images of three easily separable colours; the first train a federation, the others test it."""

    def __init__(self, name: str) -> None:
        rng = np.random.default_rng(0)
        self.label = np.arange(ROWS) % CLASSES
        pixels = rng.normal(size=(ROWS, 3, SIZE[name], SIZE[name])).astype(np.float32) / 2
        pixels[np.arange(ROWS), self.label] += 1
        self.images = Images(torch.from_numpy(pixels), (View(),))
        self.train, self.test = np.arange(HELD), np.arange(HELD, ROWS)
        self.roll = Roll(self.train, self.test, np.arange(0))
        flat = np.zeros((ROWS, 1), dtype=np.float32)
        self.study = Study(Samples(flat[:HELD], self.label[:HELD]), Samples(flat[HELD:], self.label[HELD:]), "federate")

    def outcome(self, recipe: Recipe, threads: int = 1, **changes: Any) -> tuple[NetworkLearner, Outcome]:
        machine = Machine(device="cpu", threads=threads)
        learner = NetworkLearner(recipe, self.images, self.label, self.roll, machine, dtype=torch.float64)
        one = cell(recipe, self.study.train.client, 5)
        return learner, simulate(self.study, [type(one)(**{**vars(one), **changes})], learner=learner)[0]


def plain(recipe: Recipe, scene: Scene) -> dict[str, torch.Tensor]:
    """The slow reference implementation: FedAvg of whole state dicts, weighted by rows."""
    assert recipe.federation is not None
    how, draws = cell(recipe, scene.study.train.client, 5), Draws("federate")
    held = how.partition.rows(scene.label[:HELD], 3, draws.generator("partition", 5), None)
    model = parts.network(recipe)
    names = parts.trained(model, recipe)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.load_state_dict({**model.state_dict(), **parts.start(model, recipe, 5)})
    model = model.double()
    current = {name: value.clone() for name, value in model.state_dict().items()}
    for turn in range(recipe.federation.rounds):
        found = []
        for client, mine in enumerate(held):
            model.load_state_dict(current)
            optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], **sgd(recipe))
            rows, weight = draws.batches(how.training, len(mine), 5, client, turn)
            for chosen, there in zip(rows, weight > 0, strict=True):
                picked = mine[chosen[there]]
                optimizer.zero_grad()
                loss = cross_entropy(model(scene.images.pixels[picked].double()), torch.from_numpy(scene.label[picked]))
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        loss = loss + recipe.federation.prox / 2 * (parameter - current[name]).square().sum()
                torch.autograd.backward(loss)
                optimizer.step()
            found.append({name: value.clone() for name, value in model.state_dict().items()})
        sizes = np.array([len(mine) for mine in held], dtype=np.float64)
        for name, value in current.items():
            if value.is_floating_point():
                changed = sum(
                    share * (one[name] - value) for share, one in zip(sizes / sizes.sum(), found, strict=True)
                )
                current[name] = value + changed
    return current


def sgd(recipe: Recipe) -> dict[str, float]:
    return {"lr": recipe.optimizer.lr, "weight_decay": recipe.optimizer.weight_decay}


@pytest.mark.parametrize(("name", "adaptation", "changes"), KINDS, ids=lambda value: str(value)[:20])
def test_a_federation_equals_a_plain_loop(make: Make, name: str, adaptation: str, changes: dict[str, Any]) -> None:
    recipe, scene = make(name, adaptation, **changes), Scene(name)
    learner, outcome = scene.outcome(recipe)
    expected = plain(recipe, scene)
    found = learner.network(torch.from_numpy(outcome.model), 0).tensors
    start = parts.start(parts.network(recipe), recipe, 5)
    moved = 0.0
    for key in (key for key, value in found.items() if value.is_floating_point()):
        assert (found[key] - expected[key]).abs().max() < 1e-7, key
        moved = max(moved, float((found[key] - start[key]).abs().max()))
    assert moved > 1e-3
    assert adaptation != "full" or any("running_mean" in key for key in found)


def test_client_privacy_bounds_networks_and_without_clip_or_noise_is_the_uniform_mean(
    make: Make,
) -> None:
    recipe, scene = make(CNN, "film"), Scene(CNN)
    training = cell(recipe, scene.study.train.client, 5).training
    learner, mean = scene.outcome(recipe, rule=UNIFORM)

    def private(noise: float, clip: float) -> Outcome:
        return scene.outcome(recipe, rule=UNIFORM, training=replace(training, privacy=Privacy(noise, clip)))[1]

    np.testing.assert_array_equal(private(0.0, 1e9).model, mean.model)
    start = learner.start([5])[0].numpy()
    assert np.linalg.norm(private(0.0, 1e-3).model - start) <= training.rounds * 1e-3 * (1 + 1e-9)
    assert np.linalg.norm(mean.model - start) > training.rounds * 1e-3
    assert not np.array_equal(private(0.5, 1.0).model, private(0.5, 2.0).model)


def test_variances_that_noise_could_make_negative_are_refused(make: Make) -> None:
    private = {
        "clients": {"partition": "iid", "count": 3},
        "rounds": 3,
        "privacy": {"noise_multiplier": 1.0, "clip": 1.0},
    }
    with pytest.raises(CandidateError, match=r"BatchNorm in .* keeps running variances"):
        Scene(CNN).outcome(make(CNN, "full", federation=private))
    parts.network(make(CNN, "film", federation=private))
    parts.network(make(VIT, "full", federation=private))


def test_threads_change_nothing(make: Make) -> None:
    recipe, scene = make(CNN, "full"), Scene(CNN)
    one, two = scene.outcome(recipe)[1], scene.outcome(recipe, threads=3)[1]
    np.testing.assert_array_equal(one.model, two.model)
    assert one.accuracy == two.accuracy
    assert one.sizes.sum() == HELD
    assert np.allclose(class_shares([np.arange(HELD)], scene.label[:HELD], CLASSES), 1 / 3)


def test_losses_are_those_of_the_first_batch_before_any_step(make: Make) -> None:
    recipe, scene = make(CNN, "full"), Scene(CNN)
    learner, _ = scene.outcome(recipe)
    start, rows = learner.start([5]), torch.arange(8).view(1, 2, 1, 4)
    batches = Batches(rows, torch.from_numpy(scene.label)[rows], torch.full(rows.shape, 0.25))
    training = cell(recipe, scene.study.train.client, 5).training
    updates, losses = learner.updates(start.unsqueeze(1), batches, training, losses=True)
    assert losses is not None
    model = parts.network(recipe)
    model.load_state_dict({**model.state_dict(), **parts.start(model, recipe, 5)})
    for client, chosen in enumerate(rows[0, :, 0]):
        logits = model.double()(scene.images.pixels[chosen].double())
        expected = cross_entropy(logits, torch.from_numpy(scene.label)[chosen])
        assert losses[0, 0, client].item() == pytest.approx(expected.item(), abs=1e-9)
    unasked, nothing = learner.updates(start.unsqueeze(1), batches, training, losses=False)
    assert nothing is None
    assert torch.equal(updates, unasked)


def test_a_class_without_rows_has_no_accuracy_and_changes_no_other(make: Make) -> None:
    recipe, scene = make(CNN, "film", classes=CLASSES + 1), Scene(CNN)
    found = scene.outcome(recipe)[1]
    assert np.isnan(found.class_accuracy[CLASSES])
    assert np.isfinite(found.class_accuracy[:CLASSES]).all()
    assert np.isfinite(found.client_accuracy).all()
    assert 0 <= found.accuracy <= 1


def test_hostile_clients_break_a_network_under_the_mean_but_not_the_median(make: Make) -> None:
    federation = {"clients": {"partition": "iid", "count": 5}, "rounds": 25}
    settings: dict[str, Any] = {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.2}}
    scene, median = Scene(CNN), {"aggregator": {"name": "median", "tolerates": 1}}
    recipe = make(CNN, "full", federation=federation, **settings)
    robust = make(CNN, "full", federation=federation | median, **settings)
    clean = scene.outcome(recipe)[1].accuracy
    broken = scene.outcome(recipe, adversary="ipm_10", f=1, tolerated=0)[1].accuracy
    borne = scene.outcome(robust, adversary="ipm_10", f=1, tolerated=1)[1].accuracy
    assert clean > 0.8
    assert broken < 0.4
    assert borne > 0.6


def test_a_batch_of_one_is_an_error_if_batch_norm_is_trained(make: Make) -> None:
    recipe = make(CNN, "full", federation={"clients": {"partition": "iid", "count": 8}, "rounds": 1})
    with pytest.raises(CandidateError, match="leaves no batch of one"):
        Scene(CNN).outcome(recipe.model_copy(update={"batch_size": 2}))
