"""The project's own source, parsed once, for tests that read it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "moiety"


def python_files(*folders: str) -> list[Path]:
    """Every Python file below folders of the checkout, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A file as a syntax tree."""
    return ast.parse(path.read_text("utf-8"), str(path))


def room_of(path: Path) -> str:
    """``merge`` for ``src/moiety/merge/roster.py``, ``files`` for ``src/moiety/files.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def place(path: Path, node: ast.AST) -> str:
    """Where something is, as an editor understands it."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def imported(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it) of an import statement; the name is None for ``import a.b``."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide which room they lead to"
        yield from ((node.module or "", alias.name) for alias in node.names)


def door(room: str) -> list[str]:
    """The names a room lets out: ``__all__`` of its ``__init__``, else the functions there."""
    init = PACKAGE / room / "__init__.py"
    body = tree(init).body if init.exists() else []
    for node in body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    found = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if not name.startswith("_")]


def dotted(node: ast.AST) -> str:
    """``torch.load`` for the expression that says so; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""
