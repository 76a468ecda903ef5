# SPDX-License-Identifier: MIT
"""distill_reverse_kl against the oracle: row lengths, dtypes, options, and its own edge cases."""

from __future__ import annotations

import pytest
import torch
from support import (
    ACTIONS,
    DTYPES,
    Q_SCALES,
    REDUCTIONS,
    TEMPERATURES,
    check_distill,
    check_options,
    check_row_length,
    random_logits,
)

import fastdistill as fd

KIND = "reverse_kl"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("actions", [n for n in ACTIONS if n <= 2049])
def test_row_lengths(actions, dtype):
    check_row_length(KIND, actions, dtype)


@pytest.mark.parametrize("mask", ["none", "shared", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options(reduction, weighted, mask):
    check_options(KIND, reduction, mask, weighted)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("q_scale", Q_SCALES)
def test_temperatures(temperature, q_scale):
    for dtype in DTYPES:
        student, teacher = random_logits(19, 18, dtype=dtype, q_scale=q_scale)
        check_distill(KIND, student, teacher, temperature=temperature, reduction="none")


def test_is_kl_with_the_sides_exchanged():
    student, teacher = random_logits(9, 7, dtype=torch.float64)
    forward = fd.distill_kl(teacher, student, temperature=1.0)
    assert torch.allclose(fd.distill_reverse_kl(student, teacher, temperature=1.0), forward)


def test_low_temperature_keeps_small_terms():
    # A peer's 16-bit path flushed probabilities of 1e-7 to 0 and lost the gradient with them.
    student = torch.tensor([[0.0, 16.0]], dtype=torch.bfloat16)
    teacher = torch.tensor([[0.0, 0.5]], dtype=torch.bfloat16)
    _, grad = fd.distill_loss_and_grad(KIND, student, teacher, temperature=0.05)
    assert grad.abs().min() > 0
    check_distill(KIND, student, teacher, temperature=0.05)


@pytest.mark.parametrize("actions", [6, 19, 300])
def test_probabilities_below_the_normal_numbers_count_in_the_best_actions_gradient(actions):
    # Each is below 2^-126 of the best action's; that one's gradient is the sum of their terms.
    student, teacher = random_logits(9, actions)
    teacher = teacher.clamp(-0.5, 0.5)
    student = student.clamp(-1.0, 1.0) * 0.1 - 46.5
    student[:, 2], teacher[:, 2] = 0.0, 1.0
    options = {"temperature": 0.006, "student_temperature": 0.53, "reduction": "none"}
    _, grad = fd.distill_loss_and_grad(KIND, student, teacher, **options)
    assert (grad[:, 2] < 0).all()
    check_distill(KIND, student, teacher, **options)


def test_large_finite_exponents_are_no_infinity():
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, -3e22]])
    options = {"temperature": 1e-8, "reduction": "none"}
    check_distill(KIND, student, teacher, **options)
    loss, _ = fd.distill_loss_and_grad(KIND, student, teacher, **options)
    assert loss.item() == pytest.approx(1.5e30, rel=1e-6)


@pytest.mark.parametrize("actions", [4, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_teacher_rules_out_an_action_of_the_student(actions, dtype):
    student, teacher = random_logits(5, actions, dtype=dtype)
    teacher[2, 1] = -torch.inf
    loss, grad = fd.distill_loss_and_grad(KIND, student, teacher, temperature=1.0, reduction="none")
    assert torch.isposinf(loss[2])
    assert torch.isfinite(loss[[0, 1, 3, 4]]).all()
    assert torch.equal(grad[2], torch.zeros_like(grad[2]))
    check_distill(KIND, student, teacher, temperature=1.0, reduction="none")
    student[2, 1] = -torch.inf  # now neither side has the action
    check_distill(KIND, student, teacher, temperature=1.0, reduction="none")
