"""Imports go down only: the syntax trees decide."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "privacy_gate"

# Higher floors import strictly lower ones alone; modules of one wing may import each other, but never in a circle.
FLOORS = [
    ["errors", "progress", "arrays"],
    ["documents"],
    ["weights"],
    ["dossier"],
    ["verdict"],
    ["jobs"],
    ["store"],
    ["registry", "native", "attacks"],
    ["flower", "simulation"],
    ["metrics", "compute"],
    ["checks"],
    ["auditing"],
    ["reports"],
    ["gate"],
    ["demo"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

ONLY_IN = {
    "torch": {"compute", "simulation", "native", "weights", "demo"},
    "timm": {"compute"},
    "torchvision": {"compute"},
    "numba": {"native"},
    "llvmlite": {"native"},
    "mlflow": {"registry"},
    "typer": {"cli"},
    "yaml": {"documents"},
}

MOST_ENTRIES, MOST_FILES, MOST_LINES = 25, 20, 400
"""Entries at the top of the package, files side by side in a folder, lines of a module."""


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
        if parts[0] == "privacy_gate" and len(parts) > 1:
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


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: targets & set(MODULES) - {name} for name, targets in _graph().items()}
    while graph:
        leaves = [name for name, targets in graph.items() if not targets & set(graph)]
        assert leaves, f"these import each other in a circle, or what does: {sorted(graph)}"
        for name in leaves:
            del graph[name]


def test_the_house_stays_small_enough_to_be_held_in_the_head() -> None:
    top = [entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len(top) <= MOST_ENTRIES, sorted(entry.name for entry in top)
    for folder in {path.parent for path in modules()}:
        files = [file.name for file in folder.iterdir() if file.is_file()]
        assert len(files) <= MOST_FILES, f"{folder} holds {len(files)} files"
    for path in modules():
        assert len(path.read_text().splitlines()) <= MOST_LINES, path
        assert path.stem != path.parent.name, f"{path} is called like its folder, which says nothing"


def dotted(path: Path) -> str:
    """The module's name as imports write it."""
    parts = ("privacy_gate", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in modules()}


def _graph() -> dict[str, set[str]]:
    """Every module and the modules it imports, anywhere in the file."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name == "privacy_gate":  # the public face, lazily
            continue
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {one if one in MODULES else node.module for one in inner}
        graph[name] = targets
    return graph
