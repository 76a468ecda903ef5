# SPDX-License-Identifier: MIT
"""_core.pyi against the module: same names, same number of arguments, same docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastdistill
from fastdistill import _core

STUB = ast.parse((Path(fastdistill.__file__).parent / "_core.pyi").read_text())


def public(names):
    # pybind11 adds names of its own to each class.
    return {n for n in names if not n.startswith(("__", "_pybind11"))}


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}


FUNCTIONS = {n.name: n for n in STUB.body if isinstance(n, ast.FunctionDef)}
CLASSES = {n.name: n for n in STUB.body if isinstance(n, ast.ClassDef)}


def annotated(body: list[ast.stmt]) -> set[str]:
    targets = [n.target for n in body if isinstance(n, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def argument_count(signature: str) -> int:
    """Of pybind11's first docstring line, `name(arg0: int, arg1: tuple[a, b]) -> x`."""
    inner = re.match(r"\w+\((.*)\) -> ", signature)
    assert inner is not None, signature
    text = inner.group(1)
    while True:
        shorter = re.sub(r"\[[^\[\]]*\]|\([^()]*\)", "", text)
        if shorter == text:
            break
        text = shorter
    return len([part for part in text.split(",") if part.strip() not in ("", "*", "/")])


def stub_argument_count(node: ast.FunctionDef) -> int:
    arguments = node.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)


def test_names():
    assert public(vars(_core)) == set(FUNCTIONS) | set(CLASSES) | annotated(STUB.body)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_function(name):
    signature, *rest = getattr(_core, name).__doc__.splitlines()
    assert argument_count(signature) == stub_argument_count(FUNCTIONS[name])
    text = ast.get_docstring(FUNCTIONS[name])
    if text is not None:
        assert "\n".join(rest).strip() == text


def test_classes():
    for name, node in CLASSES.items():
        actual = getattr(_core, name)
        stated = set(methods(node)) | annotated(node.body)
        assert public(vars(actual)) == public(stated), name
        for method, stub in methods(node).items():
            doc = getattr(actual, method).__doc__
            if doc and doc.startswith(f"{method}("):
                assert argument_count(doc.splitlines()[0]) == stub_argument_count(stub), method
