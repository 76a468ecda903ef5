# SPDX-License-Identifier: MIT
"""distill_jsd against the oracle: row lengths, dtypes, options, and its own edge cases."""

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

KIND = "jsd"


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


@pytest.mark.parametrize(
    "beta",
    [
        1e-30,
        1e-6,
        0.1,
        0.5,
        0.9,
        0.999,
    ],
)
def test_betas(beta):
    for actions in (6, 100):
        student, teacher = random_logits(19, actions)
        check_distill(KIND, student, teacher, beta=beta, temperature=0.3, reduction="none")
        check_distill(
            KIND, student.double(), teacher.double(), beta=beta, temperature=0.3, reduction="none"
        )


def test_beta_weighs_the_teacher():
    student, teacher = random_logits(9, 7)
    both = {"temperature": 0.7, "reduction": "none"}
    assert torch.equal(
        fd.distill_jsd(student, teacher, beta=0.0, **both), fd.distill_kl(student, teacher, **both)
    )
    assert torch.equal(
        fd.distill_jsd(student, teacher, beta=1.0, **both),
        fd.distill_reverse_kl(student, teacher, **both),
    )
    # By hand: beta KL(p || m) + (1 - beta) KL(q || m) with p the teacher.
    q, p = student.double().softmax(1), (teacher.double() / 0.7).softmax(1)
    m = 0.2 * p + 0.8 * q
    expected = (0.2 * p * (p / m).log() + 0.8 * q * (q / m).log()).sum(1)
    loss = fd.distill_jsd(student, teacher, beta=0.2, **both)
    assert torch.allclose(loss.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 0.05])
def test_both_probabilities_underflow(temperature):
    # exp(-104) is 0 in float32: log of the mixture must not become log 0.
    student = torch.tensor([[0.0, -2000.0, -300.0, 1.0]])
    teacher = torch.tensor([[0.0, -2000.0, -300.0, 1.5]])
    loss, grad = fd.distill_loss_and_grad(KIND, student, teacher, temperature=temperature)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    check_distill(KIND, student, teacher, temperature=temperature)


def test_is_bounded_where_each_side_rules_out_the_other():
    student = torch.tensor([[0.0, -torch.inf]])
    teacher = torch.tensor([[-torch.inf, 0.0]])
    loss, grad = fd.distill_loss_and_grad(KIND, student, teacher, temperature=1.0)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    assert torch.equal(grad, torch.zeros(1, 2))
    student, teacher = random_logits(5, 6)
    teacher[1, 2] = student[3, 4] = -torch.inf
    check_distill(KIND, student, teacher, temperature=1.0, reduction="none")
