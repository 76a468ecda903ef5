# SPDX-License-Identifier: MIT
"""distill_kl against the oracle: row lengths, dtypes, options, and its own edge cases."""

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

KIND = "kl"


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


@pytest.mark.parametrize("student_temperature", [0.01, 0.5, 3.0])
def test_student_temperature(student_temperature):
    student, teacher = random_logits(19, 18)
    check_distill(KIND, student, teacher, temperature=2.0, student_temperature=student_temperature)


def test_by_hand():
    # p = (1/4, 3/4) and q = (1/2, 1/2): KL = log 2 - H(p).
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, 3.0]], dtype=torch.float64).log()
    loss = fd.distill_kl(student, teacher, temperature=1.0)
    loss.backward()
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(student.grad, torch.tensor([[0.25, -0.25]], dtype=torch.float64))


def test_hinton_form_is_both_temperatures_and_their_square():
    # Hinton et al. 2015: the gradient shrinks with 1 / T^2, so the loss is multiplied by T^2.
    student, teacher = random_logits(7, 10, dtype=torch.float64)
    temperature = 4.0
    student.requires_grad_()
    loss = 16.0 * fd.distill_kl(
        student, teacher, temperature=temperature, student_temperature=temperature
    )
    loss.backward()
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum() / 7
    assert torch.allclose(loss, expected, rtol=1e-13)
    assert torch.allclose(student.grad, temperature * (q - p) / 7, rtol=1e-12)


def test_sharp_teacher_is_its_best_action():
    # The limit of temperature 0, and with equal best actions half of each.
    student, _ = random_logits(3, 4, q_scale=3.0)
    teacher = torch.tensor([[1.0, 2.0, 0.0, -1.0], [1e4, -1e4, 9999.0, 0.0], [5.0, 1.0, 5.0, 2.0]])
    loss = fd.distill_kl(student, teacher, temperature=1e-6, reduction="none")
    log_q = student.log_softmax(1)
    halves = -(log_q[2, 0] + log_q[2, 2]) / 2 - torch.tensor(2.0).log()
    expected = torch.stack([-log_q[0, 1], -log_q[1, 0], halves])
    assert torch.allclose(loss, expected, rtol=1e-6)
    nll = fd.distill_nll(student[:2], teacher[:2], reduction="none")
    assert torch.allclose(nll, expected[:2], rtol=1e-6)


@pytest.mark.parametrize("actions", [4, 100])
def test_teacher_probability_zero_adds_nothing(actions):
    student, teacher = random_logits(5, actions)
    teacher[:, 1] = -torch.inf
    student[2, 1] = -torch.inf  # 0 * (log 0 - log 0)
    check_distill(KIND, student, teacher, temperature=1.0, reduction="none")


@pytest.mark.parametrize("actions", [4, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_student_rules_out_an_action_of_the_teacher(actions, dtype):
    student, teacher = random_logits(5, actions, dtype=dtype)
    student[2, 1] = -torch.inf
    loss, grad = fd.distill_loss_and_grad(KIND, student, teacher, temperature=1.0, reduction="none")
    assert torch.isposinf(loss[2])
    assert torch.isfinite(loss[[0, 1, 3, 4]]).all()
    assert torch.isfinite(grad).all()
    assert grad[2, 1] == 0
    check_distill(KIND, student, teacher, temperature=1.0, reduction="none")
