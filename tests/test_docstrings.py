"""Everything public says what it is."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gq"
FILES = sorted(SOURCE.rglob("*.py"))


def undocumented(tree: ast.Module) -> list[str]:
    """Return what is public and has no docstring; functions inside functions are nobody else's business."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    return missing + [name for name, node in public(tree.body) if not ast.get_docstring(node)]


def public(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Yield the public classes, functions and methods of a module or class, also those under an `if` or `try`."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from public([*node.body, *node.orelse], prefix)
        assert not isinstance(node, ast.AsyncFunctionDef)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_a_missing_docstring_would_be_found() -> None:
    code = """
class Shown:
    def method(self): ...
    def _private(self): ...
    def __init__(self): ...
if True:
    def function():
        def inner(): ...
class _Hidden:
    def method(self): ...
"""
    assert undocumented(ast.parse(code)) == ["the module", "Shown", "Shown.method", "function"]
    assert undocumented(ast.parse('"""A module."""\ndef f():\n    """Do it."""')) == []
