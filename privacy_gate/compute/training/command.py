"""References that an external program trains. The policy names the program; the candidate never can.

The program is called once for every model, in an empty folder, with these arguments after its own:

    --task train     train a model on the rows named in --rows; or
    --task score     read the candidate in --model
    --table URI      the audit table, as the data manifest names it
    --rows FILE      ids of the training rows, one per line (train only)
    --model FOLDER   the candidate's files, which the program must treat as hostile (score only)
    --seed NUMBER    a different number for every reference (train only)
    --output FILE    the .npz file to write, with `logits`, (N, C) floats, rows in the table's order

It gets only those variables of the gate's environment that locate programs and devices. Its output is its log.
"""

import contextlib
import errno
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.compute.machine.scratch import scratch_folder
from privacy_gate.compute.training.judged import judged
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import CommandRecipe
from privacy_gate.dossier.tables.npz import BROKEN
from privacy_gate.errors import ConfigurationError, UnavailableError
from privacy_gate.jobs.kinds import TrainReference

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Environment variables that the program sees: none of them holds credentials."""

HEAD_BYTES, TAIL_BYTES = 1 << 16, 15 << 16
"""Bytes kept from the beginning and from the end of a log: 1 MiB in total."""

PATIENCE = 2
"""Seconds to read the rest of the log after the program has ended; a process that it left running may keep it open."""

LAST_LINES = 5
"""Number of lines of a failed program's log that the error quotes."""


def train_by_command(recipe: CommandRecipe, job: TrainReference, chosen: NDArray[np.bool_], data: AuditData) -> Arrays:
    """The arrays stored for a reference (see jobs.kinds.TrainReference), and its `log` as bytes."""
    what = f"reference {job.index}"
    with scratch_folder() as folder:
        rows = folder / "rows.txt"
        rows.write_text("".join(f"{name}\n" for name in data.ids[chosen]), encoding="utf-8")
        arguments = ["--task", "train", "--rows", str(rows), "--seed", str(job.index)]
        logits, log = _call(recipe, arguments, data, folder, what)
    arrays = {**judged([logits], data.label), "included": chosen, "log": log}
    return arrays if job.index else {**arrays, "logits": logits}


def score_by_command(recipe: CommandRecipe, candidate: Path, data: AuditData) -> Arrays:
    """The arrays stored for the candidate (see jobs.kinds.Score), and the `log` as bytes."""
    with scratch_folder() as folder:
        arguments = ["--task", "score", "--model", str(candidate)]
        logits, log = _call(recipe, arguments, data, folder, "the candidate")
    return {"logits": logits, "confidence": judged([logits], data.label)["confidence"], "log": log}


def _call(
    recipe: CommandRecipe, arguments: list[str], data: AuditData, folder: Path, what: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Runs the program on one model; its logits (N, C) and its log. what: the model, for error messages."""
    output, trainer = folder / "output.npz", recipe.trainer
    # The program runs in another folder, so a relative path to the table must become absolute.
    table = recipe.table if "://" in recipe.table else str(Path(recipe.table).resolve())
    command = [*trainer.command, *arguments, "--table", table, "--output", str(output)]
    (folder / "work").mkdir()
    code, log = _run(command, folder / "work", trainer.timeout_s)
    if code is None:
        raise _failed(what, f"it ran longer than trainer.timeout_s, {trainer.timeout_s} s", log)
    if code:
        raise _failed(what, f"its exit code was {code}", log)
    return _logits(output, (data.rows, recipe.classes), what, log), np.frombuffer(log, np.uint8)


def _run(command: list[str], folder: Path, timeout: float) -> tuple[int | None, bytes]:
    """The program's exit code (None if it took longer than `timeout` seconds) and its log.

    The program and its children are killed however the wait ends. Only if the gate itself is killed with SIGKILL, the
    program runs on until it finishes or next prints.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the operator's own program, from the policy
            command,
            cwd=folder,
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, so that `_end` can kill all its children
        )
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
            raise UnavailableError(f"cannot start the policy's trainer: {error.strerror}; run again later") from error
        raise ConfigurationError(
            f"policy: trainer.command {command[0]}: {error.strerror}; name a program by its full path"
        ) from error
    code = None
    try:
        log = _Log(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout)
    finally:
        _end(process)
    return code, log.kept()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills the program and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Log:
    """The beginning and the end of a program's output, however long it is; read while the program runs."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._head, self._tail, self._dropped, self._pipe = bytearray(), bytearray(), 0, process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # A full pipe would block the program, so everything is read even if it is then dropped.
        while self._pipe and (printed := os.read(self._pipe.fileno(), 1 << 16)):
            room = HEAD_BYTES - len(self._head)
            self._head += printed[:room]
            self._tail += printed[room:]
            over = max(0, len(self._tail) - TAIL_BYTES)
            del self._tail[:over]
            self._dropped += over

    def kept(self) -> bytes:
        """The log, after the program has ended."""
        self._reader.join(PATIENCE)
        if self._pipe and not self._reader.is_alive():
            self._pipe.close()
        gap = f"\n... {self._dropped:,} bytes left out ...\n".encode() if self._dropped else b""
        return bytes(self._head) + gap + bytes(self._tail)


def _logits(output: Path, shape: tuple[int, int], what: str, log: bytes) -> NDArray[np.float32]:
    """The logits (N, C) in the program's output file. Raises UnavailableError if they are missing or malformed."""
    try:
        with output.open("rb") as file, NpzFile(file, allow_pickle=False) as arrays:
            logits: NDArray[Any] = arrays["logits"]
    except BROKEN as error:
        raise _failed(what, f"it wrote no .npz file with logits ({type(error).__name__})", log) from error
    if logits.shape != shape or logits.dtype.kind != "f" or not np.isfinite(logits).all():
        raise _failed(what, f"its logits are {logits.dtype} {logits.shape}, expected finite floats {shape}", log)
    return logits.astype(np.float32)


def _failed(what: str, reason: str, log: bytes) -> UnavailableError:
    lines = log.decode("utf-8", errors="replace").splitlines()[-LAST_LINES:]
    printed = " | ".join(line for line in lines if line.strip()) or "nothing"
    return UnavailableError(f"the policy's trainer.command failed on {what}: {reason}; it printed: {printed}")
