# SPDX-License-Identifier: MIT
"""Sizes that a reader can hold in mind (CONTRIBUTING.md): files, recipes, functions."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

import fastdistill

PACKAGE = Path(fastdistill.__file__).parent
CSRC = Path(__file__).parents[2] / "csrc"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
MAX_RECIPE_LINES = 200  # beside its configuration; most have 150
NATIVE = {".h", ".cpp", ".inl", ".cu", ".cuh"}


def long_functions(source: str) -> list[tuple[str, int]]:
    """Functions of more lines than allowed, docstrings apart."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                assert text.end_lineno is not None
                lines -= text.end_lineno - text.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append((node.name, lines))
    return found


@pytest.mark.parametrize(
    "path",
    [
        *sorted(PACKAGE.rglob("*.py")),
        *sorted(path for path in CSRC.rglob("*") if path.suffix in NATIVE),
    ],
    ids=lambda path: path.name,
)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    if path.suffix == ".py":
        assert long_functions(text) == []


def lines_beside_configuration(source: str) -> int:
    """Of a recipe; a configuration's fields are many and plain."""
    configured = [
        node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Options"))
        if node.end_lineno is not None
    ]
    return source.count("\n") - sum(configured)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "recipes").glob("*.py")), ids=lambda path: path.name
)
def test_recipes_are_short(path):
    assert lines_beside_configuration(path.read_text()) <= MAX_RECIPE_LINES


def missing_imports(source: str) -> list[str]:
    """What is imported from the package and is not there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastdistill":
            assert node.module is not None
            module = importlib.import_module(node.module)
            found += [
                f"{node.module}.{name.name}"
                for name in node.names
                if not hasattr(module, name.name)
                and importlib.util.find_spec(f"{node.module}.{name.name}") is None
            ]
    return found


@pytest.mark.parametrize(
    "path", sorted((CSRC.parent / "benchmarks").glob("*.py")), ids=lambda path: path.name
)
def test_benchmarks_import_what_is_there(path):
    """They are run by hand, months apart; what moves would be missed."""
    assert missing_imports(path.read_text()) == []


def test_the_rule_notices():
    body = "\n".join("    x = 1" for _ in range(60))
    assert long_functions(f"def f():\n{body}") == [("f", 61)]
    short = "\n".join("    x = 1" for _ in range(59))
    doc = '    """' + "\n" * 40 + '"""'
    assert long_functions(f"def f():\n{doc}\n{short}") == []
    fields = "\n".join(f"    x{place}: int = 1" for place in range(80))
    assert lines_beside_configuration(f"class AConfig:\n{fields}\nx = 1\ny = 1\n") == 2
    assert lines_beside_configuration(f"class Parts:\n{fields}\nx = 1\n") == 82
    wrong = "from fastdistill import frames, _core\nfrom fastdistill.envs import lanes, no_env"
    assert missing_imports(wrong) == ["fastdistill.frames", "fastdistill.envs.no_env"]
