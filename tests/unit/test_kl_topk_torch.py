# SPDX-License-Identifier: MIT
"""distill_kl_topk as torch sees it: errors, derivatives, AMP, operators and compilers."""

from __future__ import annotations

import re

import pytest
import torch
from support import DTYPES
from topk_support import random_topk
from torch.library import opcheck

import fastdistill as fd

S = torch.zeros(4, 5)
V = torch.full((4, 2), 0.25).log()
I = torch.tensor([[0, 1]] * 4)  # noqa: E741


def refused(error, text, *args, **kwargs):
    with pytest.raises(error, match=f"^{re.escape('distill_kl_topk: ' + text)}$"):
        fd.distill_kl_topk(*args, **kwargs)


def changed(tensor, row, column, value):
    result = tensor.clone()
    result[row, column] = value
    return result


SHAPE = "be [batch, k], k from 1 to the number of actions, for student_logits [4, 5]"
FLOATS = "must be float64, float32, bfloat16 or float16"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((S[0], V, I), "student_logits must be [batch, actions], got [5]"),
        ((S, V[:3], I), f"teacher_values must {SHAPE}, got [3, 2]"),
        ((S, V[:, :0], I[:, :0]), f"teacher_values must {SHAPE}, got [4, 0]"),
        (
            (S, torch.zeros(4, 6), torch.zeros(4, 6).long()),
            f"teacher_values must {SHAPE}, got [4, 6]",
        ),
        ((S, V[0], I), f"teacher_values must {SHAPE}, got [2]"),
        (
            (S, V, I[:, :1]),
            "teacher_indices must have the shape of teacher_values [4, 2], got [4, 1]",
        ),
        (
            (S, V, changed(I, 2, 0, 1)),
            "teacher_indices must differ within a row, got 1 twice in row 2",
        ),
    ],
)
def test_wrong_values(arguments, text):
    refused(ValueError, text, *arguments)


@pytest.mark.parametrize("index", [-1, 5, -(2**63), 2**63 - 1])
def test_index_out_of_range(index):
    for tail in (True, False):
        refused(
            IndexError, f"teacher_indices must be in [0, 5), got {index} in row 3",
            S, V, changed(I, 3, 1, index), tail=tail, weight=torch.zeros(4),
        )  # fmt: skip


@pytest.mark.parametrize("value", [-0.28, 0.01, 3.2, 1000.0, torch.inf])
def test_logits_are_no_log_probabilities(value):
    text = (
        "teacher_values must be log-probabilities over all actions with tail=True (log_softmax, "
        "then topk), got probabilities that sum to more than 1 in row 2"
    )
    bad = changed(V, 2, 1, value)
    refused(ValueError, text, S, bad, I)
    # The first such row, on any thread.
    many = [x.repeat(2000, 1) for x in (S, bad, I)]
    refused(ValueError, text, *many)
    # A row without weight may hold anything; without tail these are logits.
    assert fd.distill_kl_topk(S, bad, I, weight=torch.tensor([1.0, 1.0, 0.0, 1.0])).isfinite()
    if value != torch.inf:
        assert fd.distill_kl_topk(S, bad, I, tail=False).isfinite()


def test_what_rounding_explains_is_accepted():
    ok = torch.tensor([[0.5, 0.5005]]).log()
    assert fd.distill_kl_topk(S[:1], ok, I[:1]).isfinite()
    text = "teacher_values must be log-probabilities"
    with pytest.raises(ValueError, match=text):
        fd.distill_kl_topk(S[:1], torch.tensor([[0.5, 0.502]]).log(), I[:1])
    # In bfloat16 the logarithm of a half is only known to 2^-9.
    assert fd.distill_kl_topk(
        S[:1], torch.tensor([[0.5, 0.502]]).log().bfloat16(), I[:1]
    ).isfinite()


def test_options():
    temperature = (
        "temperature must be 1 with tail=True (the tail at another one is unknown: pass "
        "log-probabilities of that temperature, or tail=False), got 0.5"
    )
    refused(ValueError, temperature, S, V, I, temperature=0.5)
    between = "must be between 1e-8 and 1e8"
    refused(ValueError, f"temperature {between}, got 0.0", S, V, I, temperature=0.0, tail=False)
    refused(
        ValueError,
        f"student_temperature {between}, got nan",
        S,
        V,
        I,
        student_temperature=float("nan"),
    )
    refused(TypeError, "temperature must be a number, got 'hot'", S, V, I, temperature="hot")
    text = "reduction must be 'none', 'sum', 'mean' or 'batchmean', got 'max'"
    refused(ValueError, text, S, V, I, reduction="max")


def test_types_and_devices():
    refused(TypeError, f"student_logits {FLOATS}, got torch.int64", S.long(), V, I)
    refused(TypeError, f"teacher_values {FLOATS}, got torch.int64", S, V.long(), I)
    refused(TypeError, "teacher_indices must be int64, got torch.int32", S, V, I.int())
    refused(TypeError, "teacher_indices must be int64, got torch.float32", S, V, I.float())
    for name in ("student_logits", "teacher_values", "teacher_indices"):
        arguments = {"student_logits": S, "teacher_values": V, "teacher_indices": I, name: None}
        refused(TypeError, f"{name} must be a torch.Tensor, got NoneType", **arguments)
    mask = "action_mask must be [actions] or [batch, actions] for student_logits [4, 5], got [2]"
    refused(ValueError, mask, S, V, I, action_mask=torch.ones(2, dtype=torch.bool))
    refused(ValueError, "weight must be [4], one per row, got [3]", S, V, I, weight=torch.ones(3))
    negated = "must be no negated view (call resolve_neg), got is_neg() true"
    refused(ValueError, f"teacher_values {negated}", S, torch._neg_view(-V), I)
    refused(ValueError, f"teacher_indices {negated}", S, V, torch._neg_view(-I))


def test_gradients_that_would_be_dropped():
    text = "must not require grad, got requires_grad=True; detach it"
    refused(ValueError, f"teacher_values {text}", S, V.clone().requires_grad_(), I)
    weight = torch.ones(4, requires_grad=True)
    refused(ValueError, f"weight {text}", S, V, I, weight=weight)
    with torch.no_grad():
        assert fd.distill_kl_topk(S, V, I, weight=weight).isfinite()


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_gradcheck_and_gradgradcheck(reduction, tail):
    student, values, indices = random_topk(3, 5, 2, dtype=torch.float64)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, indices[1, 1]] = False
    options = {
        "reduction": reduction, "action_mask": mask, "tail": tail, "student_temperature": 0.7,
        "weight": torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64),
    }  # fmt: skip

    def run(student):
        return fd.distill_kl_topk(student, values, indices, **options)

    student.requires_grad_()
    assert torch.autograd.gradcheck(run, (student,))
    assert torch.autograd.gradgradcheck(run, (student,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_output_and_repeated_backward(dtype):
    student, values, indices = random_topk(5, 30, 4, dtype=dtype)
    student.requires_grad_()
    factors = torch.tensor([1.0, -2.0, 0.0, 4.0, 0.5])
    factors = factors.double() if dtype is torch.float64 else factors
    loss = fd.distill_kl_topk(student, values, indices, reduction="none")
    (plain,) = torch.autograd.grad(loss, student, torch.ones_like(loss), retain_graph=True)
    for _ in range(2):
        (grad,) = torch.autograd.grad(loss, student, factors, retain_graph=True)
        assert torch.equal(grad, (plain * factors[:, None]).to(dtype))
    mean = fd.distill_kl_topk(student, values, indices)
    (grad,) = torch.autograd.grad(8 * mean, student)
    assert torch.allclose(grad.double(), plain.double() * 8 / 5, rtol=1e-2, atol=1e-4)


def test_float16_gradient_keeps_a_scale():
    student, values, indices = random_topk(4096, 6, 2, dtype=torch.float16)
    student.requires_grad_()
    scale = 2.0**12
    (scale * fd.distill_kl_topk(student, values, indices)).backward()
    expected = student.detach().float().requires_grad_()
    fd.distill_kl_topk(expected, values, indices).backward()
    assert torch.equal(student.grad, (expected.grad * scale).half())


def test_func_transforms():
    student, values, indices = random_topk(4, 9, 3, dtype=torch.float64)
    stack = torch.stack([student, 2 * student])

    def run(student):
        return fd.distill_kl_topk(student, values, indices)

    expected = torch.stack([run(stack[0]), run(stack[1])])
    assert torch.allclose(torch.vmap(run)(stack), expected, rtol=1e-12)
    leaf = student.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(leaf), leaf)
    assert torch.allclose(torch.func.grad(run)(student), grad, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_opcheck(dtype, reduction):
    student, values, indices = random_topk(5, 9, 3, dtype=dtype)
    mask, weight = torch.ones(9, dtype=torch.bool), torch.rand(5)
    arguments = (student.requires_grad_(), values, indices)
    for mask_and_weight in ((None, None), (mask, weight)):
        opcheck(
            torch.ops.fastdistill.distill_kl_topk.default,
            (*arguments, *mask_and_weight, 1.0, 0.7, True, reduction, True),
        )


@pytest.mark.parametrize(("dynamic", "reduction"), [(True, "batchmean"), (False, "none")])
def test_compiled_equals_eager(dynamic, reduction):
    def run(student, values, indices):
        loss = fd.distill_kl_topk(student * 1.5, values, indices, reduction=reduction)
        return (loss * 3).sum() + student.sum()

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, dtype in ((5, torch.float32), (9, torch.float32), (5, torch.float16)):
        student, values, indices = random_topk(batch, 12, 3, dtype=dtype)
        student.requires_grad_()
        expected = run(student, values, indices)
        got = compiled(student, values, indices)
        assert torch.equal(got, expected)
        (expected_grad,) = torch.autograd.grad(expected, student)
        (grad,) = torch.autograd.grad(got, student)
        assert torch.allclose(grad, expected_grad, rtol=1e-6, atol=1e-7)
    text = "teacher_values must not require grad"
    with pytest.raises(RuntimeError, match=text):  # Dynamo wraps the ValueError
        compiled(student, values.clone().requires_grad_(), indices)
    torch.compiler.reset()


def test_export():
    class Step(torch.nn.Module):
        def forward(self, student, values, indices):
            return fd.distill_kl_topk(student, values, indices)

    case = random_topk(5, 12, 3)
    exported = torch.export.export(Step(), case)
    assert torch.equal(exported.module()(*case), Step()(*case))
