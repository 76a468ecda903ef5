# SPDX-License-Identifier: MIT
"""distill_mse against the oracle: row lengths, dtypes, options, and its own edge cases."""

from __future__ import annotations

import pytest
import torch
from support import (
    ACTIONS,
    DTYPES,
    Q_SCALES,
    REDUCTIONS,
    check_distill,
    check_options,
    check_row_length,
    random_logits,
)

import fastdistill as fd

KIND = "mse"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("actions", [n for n in ACTIONS if n <= 2049])
def test_row_lengths(actions, dtype):
    check_row_length(KIND, actions, dtype)


@pytest.mark.parametrize("mask", ["none", "shared", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options(reduction, weighted, mask):
    check_options(KIND, reduction, mask, weighted)


@pytest.mark.parametrize("q_scale", Q_SCALES)
def test_scales(q_scale):
    for dtype in DTYPES:
        student, teacher = random_logits(19, 18, dtype=dtype, q_scale=q_scale)
        check_distill(KIND, student, teacher, reduction="none")


def test_equals_mse_loss():
    student, teacher = random_logits(21, 6, dtype=torch.float64)
    student.requires_grad_()
    expected = torch.nn.functional.mse_loss(student, teacher)
    loss = fd.distill_mse(student, teacher, reduction="mean")
    assert torch.allclose(loss, expected, rtol=1e-13)
    (grad,) = torch.autograd.grad(loss, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    assert torch.allclose(grad, expected_grad, rtol=1e-13)


@pytest.mark.parametrize("actions", [6, 100])
def test_minus_infinity_masks_its_action_on_both_sides(actions):
    student, teacher = random_logits(5, actions)
    student[1, 2] = teacher[2, 3] = student[3, 4] = teacher[3, 4] = -torch.inf
    check_distill(KIND, student, teacher, reduction="none")
