"""SACRO-ML's LiRA on one target; runs in SACRO-ML's own environment: `python peer_sacro.py FOLDER REFERENCES`.

Reads FOLDER/target.npz (x, y of the audited rows, member, weight, bias) and writes FOLDER/sacro.json: for each attack
its scores, larger = more likely a member, in the order of the rows, and its seconds.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import peer_linear
import torch
from sacroml.attacks.likelihood_attack import LIRAAttack
from sacroml.attacks.target import Target

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
    with tempfile.TemporaryDirectory() as output:  # a second target in a folder reuses the first one's references
        for mode in MODES:
            started = time.perf_counter()
            target = Target(
                model=model,
                model_module_path="peer_linear.py",
                model_name="Linear",
                model_params={"features": peer_linear.FEATURES, "classes": peer_linear.CLASSES},
                train_module_path="peer_linear.py",
                train_params={"epochs": peer_linear.EPOCHS},
                batch_size=peer_linear.BATCH,
                X_train=x[member],
                y_train=y[member],
                X_test=x[~member],
                y_test=y[~member],
            )
            attack = LIRAAttack(
                output_dir=output, write_report=False, n_shadow_models=references, mode=mode, report_individual=True
            )
            attack.attack(target)
            scores = np.empty(len(x))
            scores[rows] = attack.result["member_prob"]
            found[f"SACRO-ML LiRA {mode}"] = {"scores": scores.tolist(), "seconds": time.perf_counter() - started}
    (folder / "sacro.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
