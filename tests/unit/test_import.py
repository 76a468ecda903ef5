# SPDX-License-Identifier: MIT
"""What `import fastdistill` brings, and what waits until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastdistill as fd

PROGRAM = """
import sys
import fastdistill as fd
loaded = {name.split(".")[1] for name in sys.modules if name.startswith("fastdistill.")}
print(sorted({"api", "recipes", "report", "training"} & loaded))
print(fd.distill.__module__, fd.distill_online.__module__, fd.DistillResult.__module__)
print(callable(fd.export), sorted(set(fd.__all__) - set(dir(fd))))
from fastdistill import *
print(sorted(set(fd.__all__) - set(globals())))
"""


def test_recipes_are_imported_when_they_are_asked_for():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == [
        "[]",
        "fastdistill.api fastdistill.api fastdistill.recipes.distill",
        "True []",
        "[]",
    ]


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match=r"^module 'fastdistill' has no attribute 'distil'$"):
        fd.distil  # noqa: B018
