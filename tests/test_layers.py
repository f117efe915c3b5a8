"""Imports go down only: the syntax trees decide."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "privacy_gate"

# Higher floors may import strictly lower ones; modules of one package folder may import each other.
FLOORS = [
    ["errors", "progress", "native"],
    ["documents"],
    ["tables", "unpickle", "exhibits", "backbone", "views", "optimizers"],
    ["dataset", "weights", "federation"],
    ["candidate", "roundlog"],
    ["job", "evidence", "verdict", "subsets", "alternatives", "champion"],
    ["attacks", "federated", "batches"],
    ["metrics"],
    ["checks"],
    ["policy", "tiers"],
    ["report", "advice"],
    ["store", "reports", "registry", "packaged", "audit"],
    ["compute", "promotion", "producer"],
    ["case", "output"],
    ["preparation"],
    ["gate", "lint"],
    ["demo", "flower"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

ONLY_IN = {
    "torch": {"compute", "federated", "weights", "unpickle", "packaged", "demo"},
    "timm": {"compute"},
    "torchvision": {"compute"},
    "mlflow": {"registry", "promotion", "producer"},
    "typer": {"cli"},
    "yaml": {"documents"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The top-level module or folder a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Dotted names imported anywhere in the file, but for type checking only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "privacy_gate":
                yield from (f"privacy_gate.{alias.name}" for alias in node.names)
            else:
                yield module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    if path == PACKAGE / "__init__.py":  # the public face, lazily: see its __getattr__
        return
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "privacy_gate":
            assert parts[1] in LEVEL, f"{name} stands on no floor"
            assert parts[1] == own or LEVEL[parts[1]] < LEVEL[own], f"{own} imports {parts[1]}, which is not below it"
        else:
            assert own in ONLY_IN.get(parts[0], {own}), f"{own} imports {parts[0]}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_and_nothing_catches_everything_or_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert"
        if isinstance(node, ast.ExceptHandler):
            name = getattr(node.type, "id", None) if node.type else "everything"
            assert name not in {"everything", "Exception"}, f"line {node.lineno}: catches {name}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert room(path) == "cli", f"line {node.lineno}: prints"


def test_every_module_stands_on_a_floor() -> None:
    assert {room(path) for path in modules()} - {"__init__"} <= set(LEVEL)
