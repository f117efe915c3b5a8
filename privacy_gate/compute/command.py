"""References that another program trains: the policy names it, and the candidate never does.

The program is called once for every model, in an empty folder, with these arguments after its own:

    --task train     train a model on the rows named in --rows; or
    --task score     read the candidate in --model
    --table URI      the audit table, as the data manifest names it
    --rows FILE      ids, one per line: the training set (train only)
    --model FOLDER   the candidate's files, which are hostile until the program proves otherwise (score only)
    --seed NUMBER    another one for every reference (train only)
    --output FILE    where to write an .npz file with `logits`, (N, C) numbers, rows in the table's order

It sees no variable of the gate's environment but those that find programs and devices. What it prints is its log.
"""

import contextlib
import os
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.candidate import CommandRecipe
from privacy_gate.compute.judged import Arrays, judged
from privacy_gate.compute.scratch import scratch_folder
from privacy_gate.dataset import AuditData
from privacy_gate.errors import ConfigurationError, UnavailableError
from privacy_gate.job import TrainReference

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Variables that the program sees: none that could hold a credential."""

LOG_BYTES = 1 << 20
"""The end of a log that is kept."""

LAST_LINES = 5
"""Of a failed program's log, in the error."""


def train_by_command(recipe: CommandRecipe, job: TrainReference, chosen: NDArray[np.bool_], data: AuditData) -> Arrays:
    """What is kept of a reference (job.TrainReference), and its `log` as bytes."""
    what = f"reference {job.index}"
    with scratch_folder() as folder:
        rows = folder / "rows.txt"
        rows.write_text("".join(f"{name}\n" for name in data.ids[chosen]), encoding="utf-8")
        arguments = ["--task", "train", "--rows", str(rows), "--seed", str(job.index)]
        logits, log = _call(recipe, arguments, data, folder, what)
    arrays = {**judged([logits], data.label), "included": chosen, "log": log}
    return arrays if job.index else {**arrays, "logits": logits}


def score_by_command(recipe: CommandRecipe, candidate: Path, data: AuditData) -> Arrays:
    """What is kept of the candidate (job.Score), and the `log` as bytes."""
    with scratch_folder() as folder:
        arguments = ["--task", "score", "--model", str(candidate)]
        logits, log = _call(recipe, arguments, data, folder, "the candidate")
    return {"logits": logits, "confidence": judged([logits], data.label)["confidence"], "log": log}


def _call(
    recipe: CommandRecipe, arguments: list[str], data: AuditData, folder: Path, what: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    output, log, trainer = folder / "output.npz", folder / "log.txt", recipe.trainer
    table = recipe.table if "://" in recipe.table else str(Path(recipe.table).resolve())
    command = [*trainer.command, *arguments, "--table", table, "--output", str(output)]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    (folder / "work").mkdir()
    with log.open("wb") as written:
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own program, from the policy
                command,
                cwd=folder / "work",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigurationError(
                f"policy: trainer.command {command[0]}: {error.strerror}; name a program by its full path"
            ) from error
        try:
            code = process.wait(trainer.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise _failed(what, f"it ran longer than {trainer.timeout_s} s", log) from error
        finally:
            _end(process)
    if code:
        raise _failed(what, f"it ended with {code}", log)
    return _logits(output, (data.rows, recipe.classes), what, log), np.frombuffer(_end_of(log), np.uint8)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _logits(output: Path, shape: tuple[int, int], what: str, log: Path) -> NDArray[np.float32]:
    try:
        with np.load(output, allow_pickle=False) as found:
            logits: NDArray[Any] = found["logits"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _failed(what, f"it wrote no .npz file with logits ({type(error).__name__})", log) from error
    if logits.shape != shape or logits.dtype.kind != "f" or not np.isfinite(logits).all():
        raise _failed(what, f"its logits are {logits.dtype} {logits.shape}, expected finite floats {shape}", log)
    return logits.astype(np.float32)


def _end_of(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read()


def _failed(what: str, reason: str, log: Path) -> UnavailableError:
    lines = _end_of(log).decode("utf-8", errors="replace").splitlines()[-LAST_LINES:]
    said = " | ".join(line for line in lines if line.strip()) or "nothing"
    return UnavailableError(f"the policy's trainer failed on {what}: {reason}; it said: {said}")
