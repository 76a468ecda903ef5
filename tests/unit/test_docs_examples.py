# SPDX-License-Identifier: MIT
"""The examples in docstrings of public modules run and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import fastdistill as fd

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(fd.__path__, "fastdistill.")
    if not info.name.rpartition(".")[2].startswith("_")
)


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").startswith("fastdistill"):
            raise
        pytest.skip(f"{name} needs {error.name}")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = load(name)
    results = doctest.testmod(module, extraglobs={"torch": torch, "fd": fd})
    assert results.failed == 0


def test_examples_are_found():
    finder = doctest.DocTestFinder(exclude_empty=True)
    module = importlib.import_module("fastdistill.losses.functions")
    found = {test.name for test in finder.find(module) if test.examples}
    assert {
        f"fastdistill.losses.functions.{name}" for name in ("distill_kl", "DistillLoss")
    } <= found
