"""README is right: every file, key, command, metric and exit code in it is one that the gate takes."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

import privacy_gate
from privacy_gate import errors
from privacy_gate.attacks import ATTACKS
from privacy_gate.auditing.policy import Policy
from privacy_gate.checks import AnyCheck
from privacy_gate.cli import app
from privacy_gate.documents import Record, load, parse
from privacy_gate.dossier.candidate import Claim
from privacy_gate.dossier.dataset import Columns, DataManifest
from privacy_gate.dossier.recipe import Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", README)
GROUP: Any = typer.main.get_command(app)
KINDS: tuple[type[Record], ...] = (Recipe, DataManifest, Policy)
CHECKS = {kind.model_fields["check"].default: kind for kind in get_args(get_args(AnyCheck)[0])}


def written(kind: str) -> list[str]:
    return [text for language, text in BLOCKS if language == kind]


def files() -> dict[type[Record], str]:
    """The files that README shows, by what they are; their hashes filled in."""
    return dict(zip(KINDS, (text.replace("…", "ab" * 32) for text in written("yaml")), strict=True))


def rows(heading: str) -> dict[str, str]:
    """A table's second column by its first."""
    table = README.split(f"| {heading} |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE))


def parsed(line: str) -> None:
    """Refuses a line of shell whose command, options or arguments the gate does not have."""
    words = shlex.split(line, comments=True)[1:]
    group, name = GROUP, "privacy-gate"
    while hasattr(group, "commands"):
        name, words = words[0], words[1:]
        group = group.commands[name]
    assert group.make_context(name, words)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_file_in_it_is_accepted_as_written(kind: type[Record]) -> None:
    load(files()[kind], kind, "README.md")


def test_every_setting_in_it_is_accepted_where_it_says() -> None:
    recipe = yaml.safe_load(files()[Recipe]) | {"optimizer": {"name": "adam", "lr": 0.001}}
    plain = {"optimizer": {"name": "sgd", "lr": 0.01}}
    beside = {
        "augmentation": {}, "federation": plain, "lora": {"adaptation": "lora"}, "privacy": {},
        "precision": {"adaptation": "film"},
    }  # fmt: skip
    found = [text for text in INLINE if re.match(rf"({'|'.join(beside)}): ?[{{b]", text)]
    assert {text.partition(":")[0] for text in found} == set(beside)
    for text in found:
        setting = yaml.safe_load(text.replace(", ...}", ", rounds: 5}"))
        parse(recipe | beside[text.partition(":")[0]] | setting, Recipe, text)
    policy = yaml.safe_load(files()[Policy])
    (trainer,) = [yaml.safe_load(text) for text in INLINE if text.startswith("trainer:")]
    parse(policy | trainer, Policy, "trainer")
    parse(yaml.safe_load("epsilon: 8\ndelta: 0.00001"), Claim, "claim")
    assert "(`epsilon: 8`, `delta: 0.00001`)" in README


@pytest.mark.parametrize("line", [line for text in written("sh") for line in text.splitlines() if "gate " in line])
def test_every_command_in_it_is_one(line: str) -> None:
    parsed(line[line.index("privacy-gate ") :])


def test_every_example_of_the_help_is_one() -> None:
    def examples(command: Any) -> list[str]:
        below = [text for inner in getattr(command, "commands", {}).values() for text in examples(inner)]
        return below + re.findall(r"Example: (privacy-gate .+)", command.epilog or "")

    assert len(examples(GROUP)) == 15
    for line in examples(GROUP):
        parsed(line)


def test_every_check_is_in_it_and_every_metric_in_it_is_one_of_that_check_s() -> None:
    table = rows("check")
    assert {name.strip("`") for name in table} == set(CHECKS)
    for name, text in table.items():
        check = CHECKS[name.strip("`")]
        limits: Any = check.model_fields["limits"].annotation
        metrics = get_args(get_args(limits)[0])
        for word in re.findall(r"`(\w[\w.]*_[\w.]+)`", text):
            like = re.compile(re.escape(word).replace(r"\.\.\.", ".+"))
            assert any(map(like.fullmatch, metrics)) or word in UNLIMITED, f"{name}: {word}"


UNLIMITED = {"contribution_match"}
"""Figures that reports hold and no policy limits."""


def test_every_exit_code_is_in_it_and_in_the_help() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GateError)]
    codes = {0, 1, errors.BLOCKED, errors.INTERRUPTED} | {kind.exit_code for kind in kinds}
    assert {int(code) for code in rows("exit code")} == codes
    told = GROUP.epilog.partition("Exit codes: ")[2]
    assert {int(code) for code in re.findall(r"\b(\d+) [a-z]", told)} == codes


def test_every_column_and_every_name_of_python_in_it_exists() -> None:
    columns = {word for name in rows("column") for word in re.findall(r"\w+", name)} | {"embedding"}
    assert columns == set(Columns.model_fields)
    for text in written("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "privacy_gate":
                assert hasattr(privacy_gate, node.attr)
    called = [found for text in INLINE if (found := re.match(r"(privacy_gate(?:\.\w+)?)\.(\w+)\(", text))]
    assert {found[2] for found in called} == {"describe_table", "logged"}
    assert all(hasattr(importlib.import_module(found[1]), found[2]) for found in called)
    assert set(yaml.safe_load(files()[Policy])["checks"][0]["attacks"]) <= set(ATTACKS)
    paths = [text for text in INLINE if text.startswith("privacy_gate/")] + linked()
    assert len(paths) > 10
    assert all((ROOT / path).exists() for path in paths), paths


OWN = re.compile(
    r"https://(?:github\.com/privacy-gate/privacy-gate/(?:blob|tree)|raw\.githubusercontent\.com/privacy-gate/privacy-gate)/main/"
)
"""How links to files of this project begin: absolute, so that they work on PyPI too."""


def linked() -> list[str]:
    """The files of this project that README links to, by their paths."""
    return [OWN.sub("", link) for link in re.findall(r"\]\(([^)#]+)\)", README) if OWN.match(link)]


def test_every_link_in_it_works_on_other_sites() -> None:
    assert all(link.startswith(("https://", "#")) for link in re.findall(r"\]\(([^)]+)\)", README))
    assert {".github/report.png", "CHANGELOG.md", "policies"} <= set(linked())
