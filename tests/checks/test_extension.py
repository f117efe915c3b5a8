"""Extending the gate touches the new files and the one list of the family, and no other file.

Each test copies the package, adds to the copy, and uses what was added in a process of its own.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from privacy_gate.documents import dump

PACKAGE = Path(__file__).parents[2] / "privacy_gate"
RUNNERS, RULES = "privacy_gate.compute.runners", "privacy_gate.simulation.rules"
NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc")

JOB = '''\
"""Work of the check `silence`."""

from dataclasses import dataclass
from typing import ClassVar

from privacy_gate.jobs.kinds import Job


@dataclass(frozen=True)
class Listen(Job):
    """Which rows are silent: their embedding is no longer than `loudest`. Result: silent (N,) bool."""

    revision: ClassVar[int] = 3

    dataset: str
    loudest: float
'''

RUNNER = '''\
"""Listening to rows."""

from collections.abc import Sequence

import numpy as np

from privacy_gate.compute.work import Work
from privacy_gate.jobs.listen import Listen


def run_listen(jobs: Sequence[Listen], work: Work) -> None:
    """Compares the length of every row's embedding."""
    lengths = np.linalg.norm(work.inputs.data.embedding, axis=1)
    for job in jobs:
        work.results.put(job, {"silent": lengths <= job.loudest})
'''

METRIC = '''\
"""How many rows are silent."""

from privacy_gate.verdict.metric import SHARE, Metric

SILENT_SHARE = Metric(
    "silent_share",
    title="rows without a signal",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves="Rows.",
    means="How many rows say nothing.",
    remedy="Record again.",
)
METRICS = (SILENT_SHARE,)
'''

CHECK = '''\
"""Are there rows without any signal?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from privacy_gate.checks.base.check import Check, Results, Subject
from privacy_gate.jobs.kinds import Job
from privacy_gate.jobs.listen import Listen
from privacy_gate.metrics.silence import SILENT_SHARE
from privacy_gate.verdict.judgement import CheckResult, Limit
from privacy_gate.verdict.metric import measured


class Silence(Check):
    """silent_share: rows whose embedding is no longer than `loudest`."""

    title: ClassVar[str] = "Rows without a signal"
    left_open: ClassVar[str | None] = "silent rows"
    by_references: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    check: Literal["silence"] = "silence"
    loudest: float = 0.5
    limits: Mapping[Literal["silent_share"], Limit] = Field(default_factory=dict)

    def jobs(self, subject: Subject) -> list[Job]:
        return [Listen(subject.data.digest, self.loudest)]

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        share = float(results(self.jobs(subject)[0])["silent"].mean())
        figure = measured(SILENT_SHARE, share, (share, share), confidence, "counted", "all rows")
        return CheckResult(measurements=(figure,))
'''

ATTACK = '''\
"""A toy."""

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence


def confident(evidence: MembershipEvidence) -> Floats:
    """The surer, the likelier a member."""
    return evidence.target
'''

RULE = '''\
"""A toy."""

import torch

from privacy_gate.simulation.rules.known import NOTHING, Known, refuse_few


def first_come(updates: torch.Tensor, f: int, known: Known = NOTHING) -> torch.Tensor:
    """Only the first client's update."""
    refuse_few(updates, f, "first_come")
    return updates[..., 0, :]
'''

FORMAT = '''\
"""A toy."""

from privacy_gate.verdict.report import Report


def render(report: Report) -> str:
    """Only the verdict."""
    return f"{report.candidate.name}: {report.verdict.value}\\n"
'''

PASS = """\
import datetime, sys
from pathlib import Path
import privacy_gate
from privacy_gate.auditing.audit import audit, plan
from privacy_gate.auditing.policy import PolicyInForce, load_policy
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import load
from privacy_gate.dossier.candidate import Candidate, Dossier
from privacy_gate.dossier.dataset import DataManifest, read_data
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.reports import FORMATS
from privacy_gate.store import Store
import json

home = Path.cwd()
recipe = load((home / "recipe.yaml").read_text(), Recipe, "recipe.yaml")
manifest = load((home / "data.yaml").read_text(), DataManifest, "data.yaml")
policy, sha256 = load_policy(home / "policy.yaml")
data, now = read_data(manifest, recipe.classes), datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
candidate = Candidate("models:/m/1", "m", "1", home / "candidate", "a" * 64, Dossier(recipe=recipe, data=manifest))
store = Store("store")
run(plan(policy, candidate, data), Inputs(data, candidate.folder), Machine(device="cpu", threads=1), store)
report = audit(PolicyInForce(policy, sha256, "policy.yaml", now.isoformat()), candidate, data, store.get, now)
texts = {name: form.render(report) for name, form in FORMATS.items()}
print(json.dumps({"package": privacy_gate.__file__, "exit_code": report.exit_code, **texts}))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, to be extended."""
    shutil.copytree(PACKAGE, tmp_path / "extended" / "privacy_gate", ignore=NOT_CODE)
    return tmp_path / "extended" / "privacy_gate"


def add(copy: Path, files: Mapping[str, str], lines: Mapping[str, Mapping[str, str]]) -> None:
    """Writes the new files, and the given lines before others that stand once in files that there are."""
    for name, text in files.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    for name, places in lines.items():
        text = (copy / name).read_text()
        for before, line in places.items():
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, f"{line}\n{before}")
        (copy / name).write_text(text)


def touched(copy: Path) -> dict[str, list[str]]:
    """What differs from the package: nothing for a new file, else the lines that were added, with - those removed."""
    changes: dict[str, list[str]] = {}
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        name = str(path.relative_to(copy))
        original = PACKAGE / name
        if not original.exists():
            changes[name] = []
        elif original.read_bytes() != path.read_bytes():
            lines = difflib.ndiff(original.read_text().splitlines(), path.read_text().splitlines())
            changes[name] = [line.removeprefix("+ ").strip() for line in lines if line[0] in "+-"]
    return changes


def process(copy: Path, code: str, folder: Path) -> Any:
    """What the code prints as JSON, run on the copy in the folder."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def dossier(folder: Path, scene: Any, *checks: str) -> None:
    """A candidate with its dossier, and a policy."""
    (folder / "candidate").mkdir()
    torch.save(scene.train(scene.member_rows), folder / "candidate" / "model.pth")
    (folder / "recipe.yaml").write_text(dump(scene.recipe))
    (folder / "data.yaml").write_text(dump(scene.manifest))
    listed = "".join(f"  - {check}\n" for check in checks)
    (folder / "policy.yaml").write_text(f"name: p\nversion: 1\nrelease_context: api\nchecks:\n{listed}")


def test_a_check_with_a_metric_and_a_kind_of_job_is_its_files_and_a_line_in_the_list_of_each(
    copy: Path, scene: Any, tmp_path: Path
) -> None:
    add(
        copy,
        {
            "checks/silence.py": CHECK,
            "metrics/silence.py": METRIC,
            "jobs/listen.py": JOB,
            "compute/runners/listen.py": RUNNER,
        },
        {
            "checks/__init__.py": {
                "from privacy_gate.checks.stress import": "from privacy_gate.checks.silence import Silence",
                "    | SystemStress\n": "    | Silence",
            },
            "metrics/catalogue.py": {
                "    trajectory,\n": "    silence,",
                "    trajectory.METRICS,": "    silence.METRICS,",
            },
            "compute/run.py": {
                "from privacy_gate.compute.runners.probes": f"from {RUNNERS}.listen import run_listen",
                "from privacy_gate.progress import": "from privacy_gate.jobs.listen import Listen",
                "        _runs(Corrupt,": "        _runs(Listen, run_listen),",
            },
        },
    )
    assert touched(copy) == {
        "checks/__init__.py": ["from privacy_gate.checks.silence import Silence", "| Silence"],
        "checks/silence.py": [],
        "compute/run.py": [
            "from privacy_gate.compute.runners.listen import run_listen",
            "from privacy_gate.jobs.listen import Listen",
            "_runs(Listen, run_listen),",
        ],
        "compute/runners/listen.py": [],
        "jobs/listen.py": [],
        "metrics/catalogue.py": ["silence,", "silence.METRICS,"],
        "metrics/silence.py": [],
    }
    dossier(tmp_path, scene, "{check: silence, loudest: 16.5, limits: {silent_share: {max: 0.01}}}")
    done = process(copy, PASS, tmp_path)
    assert done["package"] == str(copy / "__init__.py")
    assert done["exit_code"] == 3  # half of the rows are silent: the limit is violated
    report = json.loads(done["json"])
    assert report["checks"][0]["settings"] == {"loudest": 16.5}
    assert report["checks"][0]["result"]["measurements"][0]["value"] == pytest.approx(0.5, abs=0.2)
    assert report["threat_model"]
    assert any(note.startswith("evidence tier E0") for note in report["notes"])
    assert "silent rows" not in report["not_tested"]
    assert "Rows without a signal" in done["html"]
    assert "rows without a signal" in done["markdown"]
    (tmp_path / "policy.yaml").write_text("{name: p, version: 1, release_context: api, checks: [{check: utility}]}")
    other = json.loads(process(copy, PASS, tmp_path)["json"])
    assert "silent rows" in other["not_tested"]
    assert other["threat_model"] == []


def test_an_attack_is_a_function_and_a_line(copy: Path, tmp_path: Path) -> None:
    line = '    Attack("confident", confident, "a toy", "members are surer", "nothing"),'
    add(
        copy,
        {"attacks/confident.py": ATTACK},
        {
            "attacks/__init__.py": {
                "from privacy_gate.attacks.entropy": "from privacy_gate.attacks.confident import confident",
                '    Attack("loss",': line,
            }
        },
    )
    assert set(touched(copy)) == {"attacks/__init__.py", "attacks/confident.py"}
    assert len(touched(copy)["attacks/__init__.py"]) == 2
    code = """\
import json
import numpy as np
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.checks.membership import Membership
phi, label = np.array([3.0, 1.0]), np.array([0, 1])
inside = np.array([[True, False], [False, True]])
evidence = MembershipEvidence(phi, np.zeros((2, 2)), inside, label, np.array([0, 1], np.int8), np.eye(2))
attacks = Membership(attacks=("confident",)).attacks
print(json.dumps([ATTACKS[name].score(evidence).tolist() for name in attacks]))
"""
    assert process(copy, code, tmp_path) == [[3.0, 1.0]]


def test_an_aggregation_rule_is_a_function_and_a_line_in_each_list_of_rules(copy: Path, tmp_path: Path) -> None:
    """Dossiers name it, without torch; the simulation has its function."""
    add(
        copy,
        {"simulation/rules/first.py": RULE},
        {
            "dossier/federation/rules.py": {'    "q_fedavg",\n]\nBefore': '    "first_come",'},
            "dossier/federation/needs.py": {'    "nnm": (2, 1),': '    "first_come": (0, 1),'},
            "simulation/rules/aggregators.py": {
                "from privacy_gate.simulation.rules.geometry": f"from {RULES}.first import first_come",
                '    "q_fedavg": q_fedavg,': '    "first_come": first_come,',
            },
        },
    )
    assert {name: len(lines) for name, lines in touched(copy).items()} == {
        "dossier/federation/needs.py": 1,
        "dossier/federation/rules.py": 1,
        "simulation/rules/aggregators.py": 2,
        "simulation/rules/first.py": 0,
    }
    code = """\
import json, torch
from privacy_gate.documents import parse
from privacy_gate.dossier.federation import Federation
from privacy_gate.simulation.rules.aggregators import rule
federation = parse({"rounds": 1, "aggregator": {"name": "first_come"}}, Federation, "federation")
print(json.dumps([federation.unmet(3), rule("clip", "first_come")(torch.eye(3), 1).tolist()]))
"""
    assert process(copy, code, tmp_path) == [None, [1.0, 0.0, 0.0]]


def test_a_report_format_is_a_function_and_a_line(copy: Path, scene: Any, tmp_path: Path) -> None:
    add(
        copy,
        {"reports/brief.py": FORMAT},
        {
            "reports/__init__.py": {
                "from privacy_gate.reports import html_page": "from privacy_gate.reports import brief",
                '    "text": Format': '    "brief": Format(brief.render, "report.txt"),',
            }
        },
    )
    assert {name: len(lines) for name, lines in touched(copy).items()} == {
        "reports/__init__.py": 2,
        "reports/brief.py": 0,
    }
    dossier(tmp_path, scene, "{check: utility, limits: {holdout_accuracy: {min: 0.1}}}")
    assert process(copy, PASS, tmp_path)["brief"] == "m: approved\n"
