"""LeakPro's LiRA and RMIA on one target; runs in LeakPro's own environment: `python peer_leakpro.py FOLDER REFERENCES`.

Reads FOLDER/target.npz (x, y of the audited rows, member, weight, bias) and writes FOLDER/leakpro.json: for each
attack its scores, larger = more likely a member, in the order of the rows, and its seconds. The audited rows are
LeakPro's whole population, so that its references are trained on as many rows, of the same pool, as everybody's;
its references are trained for the first attack and reused for the others.
"""

import json
import os
import pickle
import runpy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import peer_linear
import torch

# Beside a CPU build of torch, torchvision imports only with the gate's help: a file that needs torch alone. Kept, since
# it holds the operators. Before leakpro.
TORCHVISION = runpy.run_path(str(Path(__file__).parents[2] / "privacy_gate" / "compute" / "images" / "vision.py"))

from leakpro import LeakPro  # noqa: E402
from leakpro.input_handler.abstract_input_handler import AbstractInputHandler  # noqa: E402
from leakpro.schemas import EvalOutput, TrainingOutput  # noqa: E402

ATTACKS = {
    "LiRA online": {"attack": "lira", "online": True, "var_calculation": "carlini"},
    "RMIA online": {"attack": "rmia", "online": True},
    "RMIA online, T=1 gamma=1": {"attack": "rmia", "online": True, "temperature": 1.0, "gamma": 1.0},
}


class Handler(AbstractInputHandler):
    """What LeakPro wants to know of data and training."""

    class UserDataset(AbstractInputHandler.UserDataset):
        def __init__(self, data, targets, **kwargs):
            self.data, self.targets = data, targets

    def train(self, dataloader, model, criterion, optimizer, epochs):
        peer_linear.train(model, dataloader, epochs)
        return TrainingOutput(model=model, metrics=EvalOutput(accuracy=0.0, loss=0.0))

    def eval(self, loader, model, criterion):
        return EvalOutput(accuracy=0.0, loss=0.0)


def main() -> None:
    folder, references = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    given = np.load(folder / "target.npz")
    member = given["member"]
    rows = np.concatenate([np.flatnonzero(member), np.flatnonzero(~member)])
    found = {}
    with tempfile.TemporaryDirectory() as output:
        describe(Path(output), given)
        for name, settings in ATTACKS.items():
            config = {
                "audit": {
                    "random_seed": 0,
                    "attack_list": [settings | {"num_shadow_models": references, "training_data_fraction": 0.5}],
                    "output_dir": f"{output}/out",
                    "attack_type": "mia",
                    "data_modality": "tabular",
                },
                "target": {
                    "module_path": str(Path(peer_linear.__file__)),
                    "model_class": "Linear",
                    "target_folder": output,
                    "data_path": f"{output}/population.pkl",
                },
            }
            path = Path(output) / "audit.yaml"
            path.write_text(json.dumps(config))  # JSON is YAML
            started = time.perf_counter()
            results = LeakPro(Handler, str(path)).run_audit()
            if not results:
                sys.exit(f"{name}: LeakPro returned no result; its log says why")
            scores = np.empty(len(member))
            scores[rows] = np.ravel(results[0].signal_values)
            found[f"LeakPro {name}"] = {"scores": scores.tolist(), "seconds": time.perf_counter() - started}
    (folder / "leakpro.json").write_text(json.dumps(found))


def describe(folder: Path, given: np.lib.npyio.NpzFile) -> None:
    """The target as LeakPro wants it: weights, metadata and population, pickled."""
    x, y, member = torch.from_numpy(given["x"]), torch.from_numpy(given["y"]), given["member"]
    population = Handler.UserDataset(x, y)
    model = peer_linear.Linear()
    model.head.load_state_dict({name: torch.from_numpy(given[name]) for name in ("weight", "bias")})
    torch.save(model.state_dict(), folder / "target_model.pkl")
    loader = torch.utils.data.DataLoader(population, batch_size=peer_linear.BATCH, shuffle=True)
    nothing = EvalOutput(accuracy=0.0, loss=0.0)
    metadata = LeakPro.make_mia_metadata(
        train_result=TrainingOutput(model=model, metrics=nothing),
        optimizer=torch.optim.Adam(model.parameters(), lr=peer_linear.LR),
        loss_fn=torch.nn.CrossEntropyLoss(),
        dataloader=loader,
        test_result=nothing,
        epochs=peer_linear.EPOCHS,
        train_indices=np.flatnonzero(member).tolist(),
        test_indices=np.flatnonzero(~member).tolist(),
        dataset_name="digits-v1",
    )
    for name, value in (("model_metadata", metadata), ("population", population)):
        with (folder / f"{name}.pkl").open("wb") as file:
            pickle.dump(value, file)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main()
