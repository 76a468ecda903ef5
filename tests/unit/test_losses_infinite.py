# SPDX-License-Identifier: MIT
"""-inf on one side only: +inf where the other side has any probability, whatever its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loss_fuzz import fuzz
from support import DTYPES, check_distill

import fastdistill as fd

PROGRAM = Path(__file__).parent.parent / "loss_fuzz.py"
GAPS = (1.0, 20.0, 40.0, 53.0, 60.0, 70.0, 80.0, 87.0)  # e^-87 is nearly float32's smallest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("actions", [4, 6, 18, 40, 100])
@pytest.mark.parametrize("gap", GAPS)
def test_teacher_rules_out_an_unlikely_action(gap, actions, dtype):
    teacher, student = torch.zeros(2, 9, actions, dtype=dtype)
    teacher[4, 2] = -torch.inf
    student[4, 2] = -gap
    options = {"temperature": 1.0, "reduction": "none"}
    loss, grad = fd.distill_loss_and_grad("reverse_kl", student, teacher, **options)
    assert loss[4] == torch.inf
    assert torch.equal(grad[4], torch.zeros_like(grad[4]))
    check_distill("reverse_kl", student, teacher, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("actions", [4, 6, 18, 40, 100])
@pytest.mark.parametrize("gap", GAPS)
def test_student_rules_out_an_unlikely_action(gap, actions, dtype):
    student, teacher = torch.zeros(2, 9, actions, dtype=dtype)
    student[:, 2] = -torch.inf
    teacher[:, 2] = -gap
    options = {"temperature": 1.0, "reduction": "none"}
    loss, grad = fd.distill_loss_and_grad("kl", student, teacher, **options)
    assert (loss == torch.inf).all()
    assert (grad[:, 2] == 0).all()
    check_distill("kl", student, teacher, **options)


def test_large_finite_exponents_are_no_infinity():
    # Once every divergence above 1e15 bits was taken for a masked action's.
    student = torch.tensor([[0.0, -3e9]], dtype=torch.float32)
    teacher = torch.tensor([[0.0, 0.0]], dtype=torch.float32)
    options = {"temperature": 1.0, "student_temperature": 1e-8, "reduction": "none"}
    check_distill("kl", student, teacher, **options)
    loss, _ = fd.distill_loss_and_grad("kl", student, teacher, **options)
    assert loss.item() == pytest.approx(1.5e17, rel=1e-6)


def test_random_calls():
    assert fuzz(calls=1500, seed=0) == []


@pytest.mark.stress
@pytest.mark.timeout(3000)  # minutes each, and more beside other work
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_many_random_calls(isa):
    run = subprocess.run(
        [sys.executable, PROGRAM, "--calls", "100000", "--seed", "1"],
        env=os.environ | {"FASTDISTILL_CPU": isa}, capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    if "FASTDISTILL_CPU must be" in run.stderr:
        pytest.skip(f"this CPU does not run {isa}")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"isa": isa, "faults": []}
