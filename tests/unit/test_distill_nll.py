# SPDX-License-Identifier: MIT
"""distill_nll against the oracle: row lengths, dtypes, options, and its own edge cases."""

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

KIND = "nll"


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
@pytest.mark.parametrize("student_temperature", [0.01, 1.0, 3.0])
def test_scales(q_scale, student_temperature):
    for dtype in DTYPES:
        student, teacher = random_logits(19, 18, dtype=dtype, q_scale=q_scale)
        check_distill(
            KIND, student, teacher, student_temperature=student_temperature, reduction="none"
        )


@pytest.mark.parametrize("actions", [3, 18, 64, 65, 100, 1000])
def test_equals_cross_entropy_of_the_argmax(actions):
    student, teacher = random_logits(21, actions, dtype=torch.float64)
    student.requires_grad_()
    expected = torch.nn.functional.cross_entropy(student, teacher.argmax(1))
    loss = fd.distill_nll(student, teacher)
    assert torch.allclose(loss, expected, rtol=1e-13)
    (grad,) = torch.autograd.grad(loss, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    assert torch.allclose(grad, expected_grad, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("actions", [5, 33, 64, 65, 100, 1030])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_of_equal_best_actions(actions, dtype):
    student, teacher = random_logits(40, actions, dtype=dtype)
    teacher.zero_()
    first = torch.arange(40) * 7 % actions
    for row, index in enumerate(first.tolist()):
        teacher[row, index] = 1
        teacher[row, (index + 3) % actions :] = 1  # equals behind it, or before it
    best = (teacher == 1).int().argmax(1)
    expected = -student.double().log_softmax(1)[torch.arange(40), best]
    loss = fd.distill_nll(student, teacher, reduction="none")
    assert torch.allclose(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_mean_is_batchmean():
    student, teacher = random_logits(21, 6)
    assert torch.equal(
        fd.distill_nll(student, teacher, reduction="mean"), fd.distill_nll(student, teacher)
    )


def test_student_rules_out_the_best_action():
    student, teacher = random_logits(5, 6)
    student[2, teacher[2].argmax()] = -torch.inf
    loss, grad = fd.distill_loss_and_grad(KIND, student, teacher, reduction="none")
    assert torch.isposinf(loss).tolist() == [False, False, True, False, False]
    assert torch.isfinite(grad).all()
    check_distill(KIND, student, teacher, reduction="none")


@pytest.mark.parametrize("actions", [6, 100])
def test_nan_in_the_teacher_is_not_lost(actions):
    student, teacher = random_logits(5, actions)
    teacher[2, 3] = torch.nan
    loss = fd.distill_nll(student, teacher, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False, False]
