"""Writes fairlearn_parity.json: what fairlearn makes of two small tables. Needs `pip install fairlearn==0.15.0`."""

import json
from pathlib import Path

import fairlearn
import numpy as np
from fairlearn.metrics import MetricFrame, equalized_odds_difference
from sklearn.metrics import accuracy_score

rng = np.random.default_rng(0)
cases = []
for groups, skew in ((2, 0.25), (4, 0.1)):
    group = rng.integers(0, groups, 400)
    label = rng.integers(0, 2, 400)
    wrong = rng.random(400) < 0.1 + skew * group / groups
    predicted = np.where(wrong, 1 - label, label)
    frame = MetricFrame(metrics=accuracy_score, y_true=label, y_pred=predicted, sensitive_features=group)
    cases.append(
        {
            "group": group.tolist(),
            "label": label.tolist(),
            "predicted": predicted.tolist(),
            "accuracy_difference": float(frame.difference()),
            "equalized_odds_difference": float(equalized_odds_difference(label, predicted, sensitive_features=group)),
        }
    )
path = Path(__file__).with_suffix(".json")
path.write_text(json.dumps({"fairlearn": fairlearn.__version__, "cases": cases}))
