"""Counts the project's English: `python docs/prose.py`, or with `--base PATH` another checkout next to this one.

Columns: words of prose; "where" and "if" per 1,000 of these words; comments per 100 lines of code; lines of Markdown
over 150 characters (tables, code and lines with a URL are excluded); words that plain English avoids, each by its
first two letters: beside, nobody, likewise, lest, whoever.
"""

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ODD = ("beside", "nobody", "likewise", "lest", "whoever")
LONGEST = 150
HEADER = ("kind", "words", "where", "if", "comments", "long", "odd")


@dataclass
class Counts:
    """The figures of one kind of file."""

    words: Counter[str] = field(default_factory=Counter)
    code_lines: int = 0
    comments: int = 0
    long_lines: int = 0

    def add(self, prose: str) -> None:
        self.words.update(re.findall(r"[a-z][a-z'-]*", prose.lower()))

    def __iadd__(self, other: "Counts") -> "Counts":
        self.words.update(other.words)
        self.code_lines += other.code_lines
        self.comments += other.comments
        self.long_lines += other.long_lines
        return self

    def cells(self) -> tuple[str, ...]:
        total = self.words.total()
        odd = " ".join(f"{word[:2]}:{self.words[word]}" for word in ODD if self.words[word])
        comments = f"{100 * self.comments / self.code_lines:.1f}" if self.code_lines else ""
        return (str(total), self._rate("where"), self._rate("if"), comments, str(self.long_lines), odd)

    def _rate(self, word: str) -> str:
        total = self.words.total()
        return f"{1000 * self.words[word] / total:.1f}" if total else ""


def of_markdown(text: str) -> Counts:
    """Prose of a Markdown file: no code fences, no inline code, no addresses."""
    counts = Counts()
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            excluded = line.startswith("|") or "://" in line
            counts.long_lines += len(line) > LONGEST and not excluded
            plain = re.sub(r"`[^`]*`|<!--.*?-->|\]\([^)]*\)|https?://\S+", " ", line)
            counts.add(plain)
    return counts


def of_yaml(text: str) -> Counts:
    """Comments of a YAML file. Lines that hold a setting are its code."""
    counts = Counts()
    for line in text.splitlines():
        setting, mark, comment = line.partition("#")
        counts.code_lines += bool(setting.strip())
        if mark:
            counts.comments += 1
            counts.add(comment)
    return counts


def of_python(text: str) -> Counts:
    """Docstrings, comments and message strings of a module. A message is a string with three words or more."""
    counts = Counts()
    code_lines: set[int] = set()
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not re.match(r"#\s*(noqa|type:|fmt:|pragma)", token.string):
                counts.comments += 1
                counts.add(token.string)
        elif token.type not in skipped:
            code_lines.update(range(token.start[0], token.end[0] + 1))
    docstring_lines: set[int] = set()
    for statement, prose in strings(ast.parse(text)):
        if isinstance(statement, ast.Expr):
            docstring_lines.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
            counts.add(re.sub(r"`[^`]*`|^\s*(>>>|\.\.\.).*$|https?://\S+", " ", prose, flags=re.MULTILINE))
        elif len(re.findall(r"[a-z]{2,}", prose)) >= 3:
            counts.add(prose)
    counts.code_lines = len(code_lines - docstring_lines)
    return counts


def strings(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every string with the node that holds it: an expression statement for a docstring, else the string itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node, node.value.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value
        else:
            yield from strings(node)


def measured(root: Path) -> dict[str, Counts]:
    """The counts of a checkout by kind of file, and of the package by wing."""
    kinds: dict[str, Counts] = {}

    def count(kind: str, counts: Counts) -> None:
        kinds.setdefault(kind, Counts())
        kinds[kind] += counts

    pages = {
        "README.md": [root / "README.md"],
        "CHANGELOG.md": [root / "CHANGELOG.md"],
        "docs/": (root / "docs").glob("*.md"),
        ".github/": [*(root / ".github").glob("*.md"), *(root / ".github" / "ISSUE_TEMPLATE").glob("*.md")],
        "decisions/": (root / ".github" / "decisions").glob("*.md"),
    }
    for kind, paths in pages.items():
        for path in paths:
            count(kind, of_markdown(path.read_text(encoding="utf-8")))
    for path in (root / "policies").glob("*.yaml"):
        count("policies/", of_yaml(path.read_text(encoding="utf-8")))
    package = root / "privacy_gate"
    for path in package.rglob("*.py"):
        first = path.relative_to(package).parts[0]
        found = of_python(path.read_text(encoding="utf-8"))
        count("privacy_gate: " + ("modules at the top" if first.endswith(".py") else f"{first}/"), found)
        count("privacy_gate, all", found)
    everything = Counts()
    for kind, counts in kinds.items():
        if not kind.startswith("privacy_gate:"):
            everything += counts
    return dict(sorted(kinds.items())) | {"together": everything}


def table(own: dict[str, Counts], base: dict[str, Counts] | None) -> list[tuple[str, ...]]:
    """The rows to print. With a base every figure stands twice: the base's (<), then this checkout's (>)."""
    if base is None:
        return [HEADER, *((kind, *counts.cells()) for kind, counts in own.items())]
    kinds = sorted({*own, *base} - {"together"})
    rows: list[tuple[str, ...]] = [("kind", *(f"{name} {side}" for name in HEADER[1:] for side in "<>"))]
    for kind in [*kinds, "together"]:
        pairs = zip(base.get(kind, Counts()).cells(), own.get(kind, Counts()).cells(), strict=True)
        rows.append((kind, *(cell for pair in pairs for cell in pair)))
    return rows


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="another checkout: its figures stand in the columns marked <")
    base = parser.parse_args().base
    rows = table(measured(Path(__file__).parents[1]), measured(base) if base else None)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())


if __name__ == "__main__":
    main()
