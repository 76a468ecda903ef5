# SPDX-License-Identifier: MIT
"""Logits at any strides and addresses, and the caller's own gradient buffer."""

from __future__ import annotations

import re

import pytest
import torch
from support import DTYPES, KINDS, random_logits, temperature_options

import fastdistill as fd

SHAPES = ((21, 6), (21, 18), (5, 65), (3, 300))


def transposed(x):
    return x.t().contiguous().t()


def sliced(x):
    wide = torch.full((x.shape[0], x.shape[1] + 5), torch.nan, dtype=x.dtype)
    wide[:, 2:-3] = x
    return wide[:, 2:-3]


def every_other_row(x):
    tall = torch.full((2 * x.shape[0], x.shape[1]), torch.nan, dtype=x.dtype)
    tall[::2] = x
    return tall[::2]


def every_other_column(x):
    wide = torch.full((x.shape[0], 2 * x.shape[1]), torch.nan, dtype=x.dtype)
    wide[:, ::2] = x
    return wide[:, ::2]


def offset_by_one(x):
    flat = torch.empty(x.numel() + 1, dtype=x.dtype)
    view = flat[1:].view(x.shape)
    return view.copy_(x)


LAYOUTS = (transposed, sliced, every_other_row, every_other_column, offset_by_one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(kind, dtype, layout):
    for batch, actions in SHAPES:
        student, teacher = random_logits(batch, actions, dtype=dtype)
        options = temperature_options(kind, 0.5)
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
        for s, t in (
            (layout(student), teacher),
            (student, layout(teacher)),
            (layout(student), layout(teacher)),
        ):
            got, got_grad = fd.distill_loss_and_grad(kind, s, t, **options)
            assert torch.equal(got, loss)
            assert torch.equal(got_grad, grad)
            leaf = s.detach().requires_grad_()
            getattr(fd, f"distill_{kind}")(leaf, t, **options).backward()
            assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_rows(kind, dtype):
    for batch, actions in SHAPES:
        student, teacher = random_logits(batch, actions, dtype=dtype)
        options = {**temperature_options(kind, 0.5), "reduction": "none"}
        one_student = student[:1].expand_as(student)
        one_teacher = teacher[:1].expand_as(student)
        for s, t in ((one_student, teacher), (student, one_teacher)):
            expected = fd.distill_loss_and_grad(kind, s.contiguous(), t.contiguous(), **options)
            got = fd.distill_loss_and_grad(kind, s, t, **options)
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
    base = student[:1].clone().requires_grad_()
    getattr(fd, f"distill_{kind}")(base.expand_as(student), teacher, **options).sum().backward()
    expected = fd.distill_loss_and_grad(kind, student[:1].expand_as(student), teacher, **options)[1]
    assert torch.allclose(base.grad, expected.sum(0, keepdim=True), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "strides"), [((1, 1), (1, 7)), ((1, 5), (97, 1)), ((1, 5), (0, 1)), ((5, 1), (1, 97))]
)
def test_strides_of_dimensions_of_length_one_do_not_matter(shape, strides):
    student, teacher = torch.randn(shape), torch.randn(shape)
    odd = student.as_strided(shape, strides)
    expected = fd.distill_loss_and_grad("mse", student, teacher)
    out = torch.empty(shape).as_strided(shape, strides)
    for got in (
        fd.distill_loss_and_grad("mse", odd, teacher),
        fd.distill_loss_and_grad("mse", student, teacher, out_grad=out),
    ):
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_negated_view_is_refused():
    student, teacher = random_logits(5, 4)
    text = "student_logits must be no negated view (call resolve_neg), got is_neg() true"
    with pytest.raises(ValueError, match=re.escape(f"distill_mse: {text}")):
        fd.distill_mse(torch._neg_view(student), teacher)


def test_negated_views_of_the_other_arguments_are_refused():
    student, teacher = random_logits(5, 4)
    values, action = torch.ones(5), torch.zeros(5, dtype=torch.int64)
    refusal = "must be no negated view (call resolve_neg), got is_neg() true"
    for name, function, arguments in (
        ("distill_mse: weight", fd.distill_mse, {"weight": torch._neg_view(values)}),
        ("td_loss: weight", fd.td_loss, {"weight": torch._neg_view(values)}),
        ("td_loss: target", fd.td_loss, {"target": torch._neg_view(values)}),
        ("td_loss: target", fd.td_loss, {"target": torch._neg_view(values.double())}),
        ("td_loss: q", fd.td_loss, {"q": torch._neg_view(student)}),
    ):
        if function is fd.td_loss:
            arguments = {"q": student, "action": action, "target": values} | arguments
        else:
            arguments = {"student_logits": student, "teacher_logits": teacher} | arguments
        with pytest.raises(ValueError, match=f"^{re.escape(f'{name} {refusal}')}$"):
            function(**arguments)
    text = f"distill_loss_and_grad: out_grad {refusal}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fd.distill_loss_and_grad(
            "mse", student, teacher, out_grad=torch._neg_view(torch.empty(5, 4))
        )


def test_out_grad_must_not_overlap_weight_or_mask():
    student, teacher = random_logits(64, 8)
    memory = torch.ones(64 * 8 + 64)
    out = memory[: 64 * 8].view(64, 8)
    refusal = "distill_loss_and_grad: out_grad must be other memory than {}, got an overlap"

    def call(**arguments):
        return fd.distill_loss_and_grad("mse", student, teacher, out_grad=out, **arguments)

    for weight in (memory[:64], memory[64 * 8 - 1 : -1]):
        with pytest.raises(ValueError, match=f"^{re.escape(refusal.format('weight'))}$"):
            call(weight=weight)
    bits = memory.view(torch.uint8)
    for mask in (bits[: 64 * 8].view(64, 8), bits[64 * 8 * 4 - 1 :][:8]):
        with pytest.raises(ValueError, match=f"^{re.escape(refusal.format('action_mask'))}$"):
            call(action_mask=mask.view(torch.bool))
    # Beside it is not within it.
    _, grad = call(weight=memory[64 * 8 :], action_mask=bits[64 * 8 * 4 :][:8].view(torch.bool))
    assert torch.allclose(
        grad[:, [0, 1, 4, 5]],
        fd.distill_loss_and_grad(
            "mse", student, teacher,
            weight=torch.ones(64), action_mask=bits[64 * 8 * 4 :][:8].view(torch.bool).clone(),
        )[1][:, [0, 1, 4, 5]],
    )  # fmt: skip
    # What is converted first is read before anything is written.
    assert torch.isfinite(call(weight=memory.view(torch.bfloat16)[:64])[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_grad_is_filled_and_returned(kind, dtype):
    for batch, actions in SHAPES:
        student, teacher = random_logits(batch, actions, dtype=dtype)
        options = temperature_options(kind, 0.5)
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
        padded = torch.full((batch, actions + 3), 5.0, dtype=dtype)
        for out in (torch.full_like(student, torch.nan), padded[:, 1:-2]):
            for _ in range(2):
                got, returned = fd.distill_loss_and_grad(
                    kind, student, teacher, out_grad=out, **options
                )
                assert returned is out
                assert torch.equal(got, loss)
                assert torch.equal(out, grad)
        assert torch.equal(padded[:, [0, -1, -2]], torch.full((batch, 3), 5.0, dtype=dtype))


def test_out_grad_counts_as_written():
    student, teacher = random_logits(5, 4)
    out = torch.ones(5, 4)
    weight = torch.ones(5, 4, requires_grad=True)
    product = out * weight  # saves out for the gradient of weight
    fd.distill_loss_and_grad("kl", student, teacher, out_grad=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        fd.distill_loss_and_grad("kl", student, teacher, out_grad=torch.empty(5, 4))


def test_out_grad_must_not_overlap_the_logits():
    buffer = torch.randn(33, 18)
    teacher = torch.randn(32, 18)
    message = "^distill_loss_and_grad: out_grad must be other memory than the logits, got an over"
    for student, target, out in (
        (buffer[:32], teacher, buffer[:32]),
        (buffer[:32], teacher, buffer[1:]),
        (buffer[1:], teacher, buffer[:32]),
        (teacher, buffer[:32], buffer[1:]),
    ):
        with pytest.raises(ValueError, match=message):
            fd.distill_loss_and_grad("kl", student, target, out_grad=out)
    halves = torch.randn(64, 18)
    fd.distill_loss_and_grad("kl", halves[:32], teacher, out_grad=halves[32:])


def test_training_step_without_autograd_node():
    model = torch.nn.Linear(4, 6)
    obs, teacher = torch.randn(9, 4), torch.randn(9, 6)
    fd.distill_kl(model(obs), teacher, temperature=0.5).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logits = model(obs)
    _, grad = fd.distill_loss_and_grad("kl", logits, teacher, temperature=0.5)
    logits.backward(grad)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, value)
