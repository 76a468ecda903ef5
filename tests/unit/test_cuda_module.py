# SPDX-License-Identifier: MIT
"""fastdistill._cuda as a module: its stub, and what it says on a machine without a driver."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastdistill

ROW = {"batch": 4, "actions": 4, "loss": 8, "grad": 8, "device": 0, "stream": 0, "workspace": 16}
DISTILL = ROW | {
    "student": 8, "student_dtype": 1, "student_row_stride": 4, "teacher": 8, "teacher_dtype": 1,
    "teacher_row_stride": 4, "action_mask": 0, "mask_row_stride": 0, "weight": 0,
    "temperature": 1.0, "student_temperature": 1.0, "beta": 0.5, "scale": 1.0, "row_loss": 0,
    "grad_row_stride": 4, "kind": 0,
}  # fmt: skip
TD = ROW | {
    "q": 8, "dtype": 1, "q_row_stride": 4, "action": 8, "target": 8, "weight": 0, "scale": 1.0,
    "row_loss": 0, "td_abs": 8, "kind": 0,
}  # fmt: skip


@pytest.fixture
def cuda_module() -> ModuleType:
    return pytest.importorskip("fastdistill._cuda", reason="built without nvcc")


def test_stub_matches_the_module(cuda_module: ModuleType) -> None:
    stub = ast.parse((Path(fastdistill.__file__).parent / "_cuda.pyi").read_text())
    functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    public = {name for name in dir(cuda_module) if not name.startswith("_")}
    assert public == set(functions) | {"workspace_bytes"}
    for name, function in functions.items():
        signature = getattr(cuda_module, name).__doc__.splitlines()[0]
        assert re.findall(r"(\w+): ", signature) == [arg.arg for arg in function.args.args]


def test_workspace_holds_a_part_for_each_block(cuda_module: ModuleType) -> None:
    assert cuda_module.workspace_bytes == 16 + 8 * 4096


@pytest.mark.parametrize(
    ("function", "arguments", "name", "last"),
    [
        ("distill", DISTILL, "kind", 4),
        ("distill", DISTILL, "student_dtype", 3),
        ("distill", DISTILL, "teacher_dtype", 3),
        ("td", TD, "kind", 1),
        ("td", TD, "dtype", 1),
    ],
)
@pytest.mark.parametrize("value", [-1, 5])
def test_unknown_numbers_are_refused(
    cuda_module: ModuleType,
    function: str,
    arguments: dict[str, float],
    name: str,
    last: int,
    value: int,
) -> None:
    expected = f"{function}: {name} must be between 0 and {last}, got {value}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        getattr(cuda_module, function)(**(arguments | {name: value}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
@pytest.mark.parametrize(("function", "arguments"), [("distill", DISTILL), ("td", TD)])
def test_without_a_device_the_error_says_what_to_do(
    cuda_module: ModuleType, function: str, arguments: dict[str, float]
) -> None:
    with pytest.raises(RuntimeError, match=r"cudaGetDevice failed: .+; .*driver.*CPU tensors"):
        getattr(cuda_module, function)(**arguments)
