# SPDX-License-Identifier: MIT
"""Logits of every pair of dtypes, and the stated error bounds on every instruction set."""

from __future__ import annotations

import importlib.machinery
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loss_oracle import distill_truth, real_type
from support import (
    BOUND_ULPS,
    DTYPES,
    KINDS,
    assert_matches_truth,
    random_logits,
    temperature_options,
)

import fastdistill as fd
from fastdistill import _core

TESTS = Path(__file__).resolve().parents[1]
ISAS = ("baseline", "avx2", "avx512")


def run_script(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, because the instruction set is chosen once in each."""
    paths = [str(Path(fd.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "FASTDISTILL_CPU": isa, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=900
    )


ASK_ISA = (
    "import importlib.util as u, sys; s = u.spec_from_file_location('_core', sys.argv[1]); "
    "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.cpu_isa())"
)


def check_isa(isa: str, *options: str) -> dict[str, Any]:
    asked = run_script(isa, "-c", ASK_ISA, _core.__file__)
    if asked.returncode != 0:
        pytest.skip(f"this CPU does not run {isa}")
    assert asked.stdout.strip() == isa
    result = run_script(isa, str(TESTS / "loss_error_grid.py"), *options)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["isa"] == isa
    for kind, by_dtype in measured["errors"].items():
        for dtype, largest in by_dtype.items():
            assert largest["loss"] <= BOUND_ULPS, (kind, dtype, largest)
            assert largest["grad"] <= BOUND_ULPS, (kind, dtype, largest)
    return measured["errors"]


@pytest.mark.parametrize("isa", ISAS)
def test_error_bounds(isa):
    assert set(check_isa(isa)) == set(KINDS)


@pytest.mark.parametrize("isa", ISAS)
def test_error_bounds_of_random_temperatures(isa):
    errors = check_isa(isa, "--search", "30000")
    assert all(largest["rows"] >= 30000 for kind in errors.values() for largest in kind.values())


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_error_bounds_on_the_whole_grid(isa):
    assert set(check_isa(isa, "--full")) == set(KINDS)


def test_typical_errors():
    """Bounds must hold for the worst row; these would notice an exp2 that is off by one ulp more.

    Largest root-mean-square error on any instruction set, with these inputs: 0.41 and 0.164.
    """
    for temperature in (1.0, 3.0):
        student, teacher = random_logits(4096, 18, q_scale=3.0)
        options = {"temperature": temperature, "reduction": "none"}
        truth = distill_truth("kl", student, teacher, **options)
        loss, grad = fd.distill_loss_and_grad("kl", student, teacher, **options)
        error = (loss.double().numpy() - truth.row_loss) / (2.0**-23 * (truth.loss_scale + 1))
        assert np.sqrt((error**2).mean()) < 0.45
        error = (grad.double().numpy() - truth.grad) / (2.0**-23 * truth.grad_scale)
        assert np.sqrt((error**2).mean()) < 0.18


def test_unknown_instruction_set():
    asked = run_script("sse9", "-c", ASK_ISA, _core.__file__)
    assert asked.returncode != 0
    assert (
        "ValueError: fastdistill: FASTDISTILL_CPU must be baseline, avx2 or avx512 and run on this "
        "CPU, got sse9"
    ) in asked.stderr


def test_the_module_is_a_plain_extension():
    assert Path(_core.__file__).name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "other"), list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("actions", [18, 100])
def test_pairs_of_dtypes(kind, dtype, other, actions):
    student, teacher = random_logits(21, actions, dtype=dtype, teacher_dtype=other)
    options = {**temperature_options(kind, 0.5), "reduction": "none"}
    options["action_mask"] = torch.rand(actions) < 0.8
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    wide = torch.float64 in (dtype, other)
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert grad.dtype == dtype
    truth = distill_truth(kind, student, teacher, **options)
    assert_matches_truth(loss, grad, student, truth, kind=kind, reduction="none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_logits_equal_their_float32_values(kind, dtype):
    # Widening is exact, so nothing but the gradient's own rounding may differ.
    for actions in (6, 100):
        student, teacher = random_logits(21, actions, dtype=dtype)
        options = temperature_options(kind, 0.5)
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
        wide, wide_grad = fd.distill_loss_and_grad(
            kind, student.float(), teacher.float(), **options
        )
        assert torch.equal(loss, wide)
        assert torch.equal(grad, wide_grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_widens_and_narrows(dtype):
    # The gradient of mse against 0 at weight 1/2 is the logit itself.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[values.isfinite()]
    zeros = torch.zeros_like(values)
    for width in (1, 100):
        rows = values[: len(values) // width * width].view(-1, width)
        weight = torch.full((len(rows),), 0.5)
        _, grad = fd.distill_loss_and_grad(
            "mse", rows, zeros[: rows.numel()].view_as(rows), weight=weight, reduction="sum"
        )
        assert torch.equal(grad, rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrowing_rounds_to_even_as_torch_does(dtype):
    # Gradients between two 16-bit values, ties included: 2 * weight * (1 - 0).
    bits = torch.randint(0, 2**31 - 2**24, (20000,), dtype=torch.int32)
    ties = torch.arange(0x38000000, 0x38000000 + 5000 * 0x800, 0x800, dtype=torch.int32)
    tiny = torch.rand(5000) * 2.0**-13
    factors = torch.cat([bits.view(torch.float32), ties.view(torch.float32), tiny])
    factors = factors[factors.isfinite() & (factors < 1e38)]
    ones = torch.ones(len(factors), 1, dtype=dtype)
    _, grad = fd.distill_loss_and_grad(
        "mse", ones, torch.zeros_like(ones), weight=factors / 2, reduction="sum"
    )
    assert torch.equal(grad[:, 0], ((factors / 2) * 2).to(dtype))


def test_oracle_has_room():
    # Bounds in float64 mean something only if the oracle is finer than what it judges.
    assert real_type(torch.zeros(1, dtype=torch.float64)) is np.longdouble
    if np.finfo(np.longdouble).eps > 2.0**-60:
        pytest.skip("long double is float64 here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("actions", [1, 6, 100])
def test_a_gradient_of_16_bits_is_rounded_once(dtype, actions):
    # Just above the midpoint of two neighbours: by way of float32 it would become the midpoint.
    step = torch.finfo(dtype).eps
    student = torch.zeros(3, actions, dtype=dtype)
    for sign in (1.0, -1.0):
        value = -sign * (1 + step / 2 + 2.0**-40) / 2
        teacher = torch.full((3, actions), value, dtype=torch.float64)
        _, grad = fd.distill_loss_and_grad("mse", student, teacher, reduction="sum")
        assert torch.equal(grad, torch.full_like(student, sign * (1 + step)))
