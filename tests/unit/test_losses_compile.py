# SPDX-License-Identifier: MIT
"""The operators behind torch.compile and torch.export: equal to eager, without a graph break."""

from __future__ import annotations

import shutil

import pytest
import torch
from support import DTYPES, KINDS, PassOn, random_logits, temperature_options
from torch.library import opcheck

import fastdistill as fd
from fastdistill.losses.reference import KINDS as KINDS_BY_NUMBER

DISTILL = {kind: getattr(fd, f"distill_{kind}") for kind in KINDS}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def op_arguments(kind, dtype, reduction="batchmean", mask=None, weight=None):
    student, teacher = random_logits(5, 6, dtype=dtype)
    return (
        student.requires_grad_(), teacher, mask, weight, KINDS_BY_NUMBER.index(kind), 0.5, 1.0,
        0.5, reduction, True, f"distill_{kind}",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_opcheck_distill(kind, reduction):
    op = torch.ops.fastdistill.distill.default
    opcheck(op, op_arguments(kind, torch.float32, reduction))
    mask, weight = torch.rand(5, 6) < 0.7, torch.rand(5)
    opcheck(op, op_arguments(kind, torch.float64, reduction, mask, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_distill_dtypes(dtype):
    # 16-bit gradients are compared at their own precision by opcheck's default tolerances.
    opcheck(torch.ops.fastdistill.distill.default, op_arguments("kl", dtype))


def test_opcheck_td():
    for dtype in (torch.float32, torch.float64):
        for reduction in ("mean", "none"):
            q = torch.randn(5, 6, dtype=dtype, requires_grad=True)
            arguments = (
                q, torch.tensor([0, 5, 2, 3, 3]), torch.randn(5, dtype=dtype),
                torch.rand(5, dtype=dtype), 0, reduction, True,
            )  # fmt: skip
            opcheck(torch.ops.fastdistill.td.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["dense", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_fake_kernel_tells_shapes_strides_and_dtypes(dtype, layout, reduction):
    from torch._subclasses.fake_tensor import FakeTensorMode

    def make():
        student = torch.ones(5, 6, dtype=dtype)
        return {
            "dense": student,
            "transposed": torch.ones(6, 5, dtype=dtype).t(),
            "sliced": torch.ones(5, 9, dtype=dtype)[:, 2:8],
            "expanded": student[:1].expand(5, 6),
        }[layout]

    options = (None, None, 0, 0.5, 1.0, 0.5, reduction, True, "distill_kl")
    real = torch.ops.fastdistill.distill(make(), torch.ones(5, 6), *options)
    with FakeTensorMode():
        fake = torch.ops.fastdistill.distill(make(), torch.ones(5, 6), *options)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def step(kind, options):
    def run(student, teacher, mask, weight):
        loss = DISTILL[kind](student * 1.5, teacher, action_mask=mask, weight=weight, **options)
        return (loss * 3).sum() + student.sum()

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dynamic", "reduction"), [(True, "batchmean"), (False, "none")])
def test_compiled_equals_eager(kind, dynamic, reduction):
    options = {**temperature_options(kind, 0.5), "reduction": reduction}
    run = step(kind, options)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, dtype in ((5, torch.float32), (9, torch.float32), (5, torch.float64)):
        student, teacher = random_logits(batch, 6, dtype=dtype)
        student.requires_grad_()
        mask, weight = torch.rand(6) < 0.8, torch.rand(batch)
        expected = run(student, teacher, mask, weight)
        got = compiled(student, teacher, mask, weight)
        assert torch.equal(got, expected)
        (expected_grad,) = torch.autograd.grad(expected, student)
        (grad,) = torch.autograd.grad(got, student)
        assert torch.allclose(grad, expected_grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_compiled_16_bit_gradient_keeps_grad_output(dtype, reduction):
    # A grad_output of 1 + 2^-10 is 1 in bfloat16: it must not be rounded before it multiplies.
    student, teacher = random_logits(64, 6, dtype=dtype)
    student.requires_grad_()

    def run(student, teacher):
        return fd.distill_kl(student, teacher, temperature=0.5, reduction=reduction)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for factor in (1.0, 1.0029296875, 2.0**16):
        loss, compiled_loss = run(student, teacher), compiled(student, teacher)
        factors = torch.full_like(loss, factor)
        (expected,) = torch.autograd.grad(loss, student, factors)
        (grad,) = torch.autograd.grad(compiled_loss, student, factors)
        assert torch.equal(compiled_loss, loss)
        assert torch.equal(grad, expected)


# torch's inductor itself uses torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.parametrize("dynamic", [True, False])
def test_inductor(dynamic):
    run = step("kl", {"temperature": 0.5})
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    student, teacher = random_logits(9, 6)
    student.requires_grad_()
    expected = run(student, teacher, None, None)
    got = compiled(student, teacher, None, None)
    assert torch.allclose(got, expected, rtol=1e-6)
    (expected_grad,) = torch.autograd.grad(expected, student)
    (grad,) = torch.autograd.grad(got, student)
    assert torch.allclose(grad, expected_grad, rtol=1e-6, atol=1e-7)


def test_loss_and_grad_compiled():
    student, teacher = random_logits(9, 6)

    def run(student, teacher, out):
        return fd.distill_loss_and_grad("kl", student, teacher, out_grad=out)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = run(student, teacher, None)
    for out in (None, torch.zeros(9, 6)):
        got = compiled(student, teacher, out)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert out is None or torch.equal(out, expected[1])


class Tagged(torch.Tensor):
    pass


def in_dispatch_mode(function):
    def run(*args):
        with PassOn():
            return function(*args)

    return run


def with_subclass(function):
    return lambda first, *others: function(first.as_subclass(Tagged), *others)


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


operators = pytest.mark.parametrize(
    "through", [in_dispatch_mode, with_subclass, compiled], ids=lambda way: way.__name__
)


@operators
def test_td_abs_is_not_differentiable(through):
    q = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    action, target = torch.randint(6, (9,)), torch.randn(9, dtype=torch.float64)
    loss, td_abs = through(lambda *args: fd.td_loss(*args, kind="mse"))(q, action, target)
    td = q.detach().gather(1, action[:, None])[:, 0] - target
    assert not td_abs.requires_grad
    assert (td_abs.numpy() == td.abs().numpy()).all()
    (grad,) = torch.autograd.grad(loss, q)
    expected = torch.zeros_like(q).scatter(1, action[:, None], (2 * td / 9)[:, None])
    assert torch.allclose(grad, expected, rtol=1e-14)


@operators
def test_loss_and_grad_leaves_no_graph(through):
    run = through(lambda s, t, out: fd.distill_loss_and_grad("mse", s, t, out_grad=out))
    student = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    out = torch.zeros(9, 6, dtype=torch.float64)
    for given in (None, out, out):
        teacher = torch.randn(9, 6, dtype=torch.float64)
        loss, grad = run(student, teacher, given)
        difference = student.detach() - teacher
        assert torch.allclose(loss, difference.square().sum() / 9, rtol=1e-14)
        assert torch.allclose(grad, 2 * difference / 9, rtol=1e-14)
        assert not any(tensor.requires_grad for tensor in (loss, grad, out))
    assert torch.equal(out, grad)


@pytest.mark.parametrize("op", ["distill", "distill_kl_topk", "td"])
def test_the_operators_gradient_is_not_differentiable(op):
    student, teacher = random_logits(5, 6)
    values, indices = teacher.log_softmax(1).topk(2)
    arguments = {
        "distill": (teacher, None, None, 0, 0.5, 1.0, 0.5, "sum", True, "distill_kl"),
        "distill_kl_topk": (values, indices, None, None, 1.0, 1.0, True, "sum", True),
        "td": (indices[:, 0], values[:, 0], None, 0, "sum", True),
    }[op]
    loss, *others = getattr(torch.ops.fastdistill, op)(student.requires_grad_(), *arguments)
    assert loss.requires_grad
    assert not any(other.requires_grad for other in others)


def test_out_grad_is_checked_when_compiled():
    run = compiled(lambda s, t, out: fd.distill_loss_and_grad("kl", s, t, out_grad=out))
    student, teacher = random_logits(4, 5)
    with pytest.raises(Exception, match=r"out_grad must have the shape of student_logits \[4, 5\]"):
        run(student, teacher, torch.empty(2, 4, 5))
    with pytest.raises(Exception, match="out_grad must have the dtype of student_logits"):
        run(student, teacher, torch.empty(4, 5, dtype=torch.float64))


def test_td_compiled():
    q = torch.randn(9, 6, requires_grad=True)
    action, target = torch.randint(6, (9,)), torch.randn(9)

    def run(q, action, target):
        loss, td_abs = fd.td_loss(q, action, target)
        return loss * 2, td_abs

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, got = run(q, action, target), compiled(q, action, target)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    (expected_grad,) = torch.autograd.grad(expected[0], q)
    (grad,) = torch.autograd.grad(got[0], q)
    assert torch.allclose(grad, expected_grad, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_module_compiled_and_exported(kind):
    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 6)
            self.loss = fd.DistillLoss(kind, **temperature_options(kind, 0.5))

        def forward(self, obs, teacher):
            return self.loss(self.layer(obs), teacher)

    model = Student()
    obs, teacher = torch.randn(9, 4), torch.randn(9, 6)
    expected = model(obs, teacher)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(obs, teacher), expected)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, (obs, teacher), dynamic_shapes={"obs": {0: batch}, "teacher": {0: batch}}
    )
    assert torch.equal(program.module()(obs, teacher), expected)
    fewer = obs[:4], teacher[:4]
    assert torch.equal(program.module()(*fewer), model(*fewer))


def test_refusals_when_compiled():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(student, teacher, weight):
        return fd.distill_kl(student, teacher, weight=weight, temperature=0.5)

    student = torch.randn(3, 4, requires_grad=True)
    wanting = torch.randn(3, 4, requires_grad=True)
    wanting_weight = torch.rand(3, requires_grad=True)
    message = "must not require grad, got requires_grad=True; detach it"
    with pytest.raises(Exception, match=f"distill_kl: teacher_logits {message}"):
        run(student, wanting, None)
    with pytest.raises(Exception, match=f"distill_kl: weight {message}"):
        run(student, wanting.detach(), wanting_weight)
    with pytest.raises(ValueError, match="distill_kl: teacher_logits must have the shape"):
        run(student, torch.randn(3, 5), None)
