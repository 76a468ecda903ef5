# SPDX-License-Identifier: MIT
"""Who may import whom: the rule of docs/design.md, read from the sources.

Lower layers know nothing of higher ones, `losses` and `replay` nothing of each other, and an
optional library enters through one module, which says how to install it.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import fastdistill

PACKAGE = Path(fastdistill.__file__).parent
TESTS = Path(__file__).parents[1]
CSRC = TESTS.parent / "csrc"

# Of csrc: the computing folders, each of which may include its own files and csrc/common.
COMPUTING = ("common", "frames", "losses", "replay")

# From the ground up. A module may import modules of lower layers and of its own folder.
LAYERS = (
    {"_core", "_cuda"},
    {"_native", "_files", "streams"},
    {"losses", "replay", "envs", "networks"},  # the four parts know nothing of each other
    {"teachers"},
    {"evaluation"},
    {"training"},
    {"report", "export"},
    {"recipes"},
    {"api", "commands"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Data only; and the package itself, which offers the public names of all layers.
NOT_LAYERED = {"zoo", "__init__"}

# What the package cannot be used without.
REQUIRED = {"torch", "numpy"}

# Each native module has one door.
DOORS = {"_core": "_native", "_cuda": "_native"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The folder or top-level module that a file is in, which has the layer."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(source: str) -> set[tuple[str, ...]]:
    """The dotted names that a source imports, at the top or inside functions."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            assert node.module is not None
            parts = tuple(node.module.split("."))
            if parts == ("fastdistill",):
                found |= {(*parts, alias.name) for alias in node.names}
            else:
                found.add(parts)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(tuple(node.args[0].value.split(".")))
    return found


def complaints(module: str, source: str) -> list[str]:
    """The rules that a module of that name and source breaks."""
    if module in NOT_LAYERED:
        return []
    if module not in LEVEL:
        return [f"{module} has no layer: put it into LAYERS and into docs/design.md"]
    wrong = []
    for parts in imports_of(source):
        if parts[0] != "fastdistill" or len(parts) < 2:
            continue
        target = parts[1]
        if target not in LEVEL:
            wrong.append(f"{module} imports {target}, which has no layer")
        elif DOORS.get(target, module) != module:
            wrong.append(f"{module} imports {target}, which {DOORS[target]} alone may")
        elif LEVEL[target] > LEVEL[module]:
            wrong.append(f"{module} imports {target} of a higher layer")
        elif LEVEL[target] == LEVEL[module] and target != module:
            wrong.append(f"{module} imports {target}, its neighbour")
    return wrong


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert complaints(module_of(path), path.read_text()) == []


def test_optional_libraries_have_one_door():
    doors: dict[str, set[str]] = {}
    for path in sources():
        for parts in imports_of(path.read_text()):
            # torch.utils.tensorboard is torch's name for the optional tensorboard.
            top = "tensorboard" if parts[:3] == ("torch", "utils", "tensorboard") else parts[0]
            if top not in sys.stdlib_module_names and top not in REQUIRED | {"fastdistill"}:
                doors.setdefault(top, set()).add(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in doors.items() if len(paths) > 1} == {}


def test_the_reference_is_independent():
    # An oracle that imported what it judges would judge nothing.
    for path in (PACKAGE / "losses" / "reference.py", TESTS / "replay_reference.py"):
        assert all(parts[0] != "fastdistill" for parts in imports_of(path.read_text())), path


def native_complaints(folder: str, source: str) -> list[str]:
    """The includes of a native source that its folder may not have."""
    wrong = []
    for line in re.findall(r"^\s*#\s*include.*", source, re.MULTILINE):
        if any(word in line for word in ("pybind11", "Python.h", "torch", "ATen")):
            wrong.append(
                f"{folder} includes {line.split()[-1]}, and knows neither Python nor torch"
            )
        target = re.search(r'"(\w+)/', line)
        # simt/ is the simulated GPU of tests/cpp, behind a macro.
        if target and target[1] not in (folder, "common", "simt"):
            wrong.append(f"{folder} includes {target[1]}/, not its own and not common/")
    return wrong


def test_native_sources_know_neither_python_nor_torch_nor_each_other():
    folders = sorted(path.name for path in CSRC.iterdir() if path.is_dir())
    assert folders == sorted({*COMPUTING, "bindings", "cuda_module"})
    for folder in COMPUTING:
        for path in (CSRC / folder).rglob("*"):
            if path.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh"}:
                assert native_complaints(folder, path.read_text()) == [], path


@pytest.mark.parametrize(
    ("folder", "source", "expected"),
    [
        ("frames", "#include <torch/torch.h>",
         "frames includes <torch/torch.h>, and knows neither Python nor torch"),
        ("replay", '#include "losses/simd.h"',
         "replay includes losses/, not its own and not common/"),
        ("losses", '# include "bindings/tensor_view.h"',
         "losses includes bindings/, not its own and not common/"),
        ("frames", '#include "common/parallel.h"\n#include <vector>', None),
    ],
)  # fmt: skip
def test_the_native_rule_notices(folder, source, expected):
    assert native_complaints(folder, source) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("losses", "from fastdistill.replay import x", "losses imports replay, its neighbour"),
        ("replay", "import fastdistill.losses", "replay imports losses, its neighbour"),
        ("losses", "from fastdistill import teachers", "losses imports teachers of a higher layer"),
        ("training", "def f():\n  from fastdistill.cli import main",
         "training imports cli of a higher layer"),
        ("replay", "from fastdistill import _core",
         "replay imports _core, which _native alone may"),
        ("helpers", "", "helpers has no layer: put it into LAYERS and into docs/design.md"),
        ("recipes", "from fastdistill.losses import td_loss", None),
        ("training", "from fastdistill.networks import QNetwork", None),
        ("evaluation", "from fastdistill.teachers import load", None),
        ("losses", "from fastdistill.losses.ops import x", None),
        ("export", "from fastdistill.evaluation.cost import x", None),
        ("export", "import fastdistill.report", "export imports report, its neighbour"),
    ],
)  # fmt: skip
def test_the_rule_notices(module, source, expected):
    assert complaints(module, source) == ([] if expected is None else [expected])
