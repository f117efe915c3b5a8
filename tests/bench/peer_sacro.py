"""SACRO-ML's LiRA on one target; runs in SACRO-ML's own environment: `python peer_sacro.py FOLDER REFERENCES`.

Reads FOLDER/target.npz (x, y of the audited rows, member, weight, bias) and writes FOLDER/sacro.json: for each attack
its scores, larger = more likely a member, in the order of the rows, and its seconds.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peer_linear
import torch
from sacroml.attacks.likelihood_attack import LIRAAttack
from sacroml.attacks.target import Target
from sklearn.linear_model import LogisticRegression

MODES = ("online-carlini", "offline")


def main() -> None:
    folder, references = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    given = np.load(folder / "target.npz")
    x, y, member = given["x"], given["y"], given["member"]
    rows = np.concatenate([np.flatnonzero(member), np.flatnonzero(~member)])
    model = peer_linear.Linear()
    model.head.load_state_dict({name: torch.from_numpy(given[name]) for name in ("weight", "bias")})
    found = {}
    with tempfile.TemporaryDirectory() as output:  # within a folder, what is attacked second reuses the references
        # The same model on torch's path; and, as its scikit-learn path wants, a linear model that scikit-learn trained.
        plain = LogisticRegression(max_iter=1000).fit(x[member], y[member])
        paths = {mode: (mode, torch_model(model)) for mode in MODES} | {"scikit-learn": ("offline", {"model": plain})}
        for name, (mode, settings) in paths.items():
            started = time.perf_counter()
            target = Target(X_train=x[member], y_train=y[member], X_test=x[~member], y_test=y[~member], **settings)
            attack = LIRAAttack(
                output_dir=f"{output}/{'torch' if name in MODES else name}",
                write_report=False,
                n_shadow_models=references,
                mode=mode,
                report_individual=True,
            )
            attack.attack(target)
            scores = np.empty(len(x))
            scores[rows] = attack.result["member_prob"]
            found[f"SACRO-ML LiRA {name}"] = {"scores": scores.tolist(), "seconds": time.perf_counter() - started}
    (folder / "sacro.json").write_text(json.dumps(found))


def torch_model(model: torch.nn.Module) -> dict[str, Any]:
    """What SACRO-ML wants to know of the model to train others like it."""
    return {
        "model": model,
        "model_module_path": "peer_linear.py",
        "model_name": "Linear",
        "model_params": {"features": peer_linear.FEATURES, "classes": peer_linear.CLASSES},
        "train_module_path": "peer_linear.py",
        "train_params": {"epochs": peer_linear.EPOCHS},
        "batch_size": peer_linear.BATCH,
    }


if __name__ == "__main__":
    main()
