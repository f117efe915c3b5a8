"""What torchattacks' APGD leaves standing of the network in tests/compute/test_apgd.py: python apgd_parity.py

Needs torch and torchattacks alone; writes apgd_parity.json beside itself.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchattacks
from torch import nn

CLASSES, SIZE, ROWS, STEPS = 5, 8, 200, 20

rng = np.random.default_rng(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES)
)
for tensor in model.parameters():
    tensor.data = torch.from_numpy(
        rng.normal(size=tuple(tensor.shape)) * 2.0 / np.sqrt(max(1, tensor[0].numel()))
    ).float()
model.eval()
x = torch.from_numpy(np.random.default_rng(5).uniform(0, 1, (ROWS, 3, SIZE, SIZE))).float()
label = model(x).argmax(1)
standing = {}
for levels in (1, 2, 4):
    radius, found = levels / 255, {}
    attacks = {
        "PGD": torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=STEPS, random_start=False),
        "APGD-CE": torchattacks.APGD(model, norm="Linf", eps=radius, steps=STEPS, n_restarts=1, seed=0, loss="ce"),
        "APGD-T": torchattacks.APGDT(
            model, norm="Linf", eps=radius, steps=STEPS, n_restarts=1, seed=0, n_classes=CLASSES
        ),
    }
    for name, attack in attacks.items():
        found[name] = int((model(attack(x, label)).argmax(1) == label).sum())
    standing[str(levels)] = found
logits, label = np.round(rng.normal(size=(4, CLASSES)) * 3, 2), torch.arange(4)
target = (label + 2) % CLASSES
loss = torchattacks.APGDT(model, n_classes=CLASSES).dlr_loss_targeted(torch.from_numpy(logits), label, target)
told = {
    "made by": "tests/data/apgd_parity.py",
    "torchattacks": version("torchattacks"),
    "torch": torch.__version__,
    "rows": ROWS,
    "steps": STEPS,
    "standing": standing,
    "targeted_dlr": {
        "logits": logits.tolist(),
        "label": label.tolist(),
        "target": target.tolist(),
        "loss": loss.tolist(),
    },
}
Path(__file__).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
