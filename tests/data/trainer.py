"""A trainer as a team might bring it: no torch, its own optimiser, its own reading of the table."""

import argparse
import os
import subprocess
import sys
import time

import numpy as np
from pyarrow import parquet

arguments = argparse.ArgumentParser()
for name in ("task", "table", "rows", "model", "seed", "output", "misbehave"):
    arguments.add_argument(f"--{name}")
asked = arguments.parse_args()

table = parquet.read_table(asked.table)
x = np.stack(table["features"].to_numpy())
y = table["label"].to_numpy()
print(f"{asked.task}: {len(x)} rows, secret {os.environ.get('MLFLOW_TRACKING_TOKEN', 'unseen')}")
if asked.misbehave == "fail":
    sys.exit("out of luck")
if asked.misbehave == "linger":
    with open("../../pid", "w") as file:  # noqa: PTH123
        file.write(f"{os.getpid()}\n")
if asked.misbehave in ("sleep", "linger"):
    time.sleep(60)
if asked.task == "score":
    weight = np.load(os.path.join(asked.model, "weight.npy"))  # noqa: PTH118
else:
    with open(asked.rows, encoding="utf-8") as file:  # noqa: PTH123
        named = set(file.read().split())
    chosen = np.isin(table["id"].to_numpy().astype(str), list(named))
    weight = np.random.default_rng(int(asked.seed)).normal(size=(x.shape[1], y.max() + 1)) * 0.01
    for _ in range(60):
        z = x[chosen] @ weight
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(chosen.sum()), y[chosen]] -= 1
        weight -= 0.5 * x[chosen].T @ p / chosen.sum()
logits = x @ weight
if asked.misbehave == "nan":
    logits[0] = np.nan
if asked.misbehave == "escape":  # out of the program's group, with its output open
    subprocess.Popen(["sleep", "20"], start_new_session=True)
if asked.misbehave == "chatty":
    print("first words")
    for _ in range(30):
        print("x" * 100_000)
    print("last words")
if asked.misbehave == "plain":
    with open(asked.output, "wb") as file:  # noqa: PTH123
        np.save(file, logits)
elif asked.misbehave == "empty":
    open(asked.output, "wb").close()  # noqa: PTH123
elif asked.misbehave != "silent":
    np.savez_compressed(asked.output, logits=logits.astype(np.float32))
if asked.misbehave == "corrupt":
    with open(asked.output, "r+b") as file:  # noqa: PTH123
        file.seek(200)
        file.write(bytes(range(100)))
