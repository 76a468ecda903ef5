# SPDX-License-Identifier: MIT
"""The losses as autograd sees them: derivatives of all orders, scales, repeated backward, AMP."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from loss_oracle import distill_truth
from support import DTYPES, KINDS, check_distill, random_logits, temperature_options

import fastdistill as fd
from fastdistill.losses.reference import distill_reference

DISTILL = {kind: getattr(fd, f"distill_{kind}") for kind in KINDS}


def case(kind, dtype=torch.float64, batch=4, actions=5):
    student, teacher = random_logits(batch, actions, dtype=dtype)
    return student.requires_grad_(), teacher, temperature_options(kind, 0.7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_gradcheck_and_gradgradcheck(kind, reduction):
    student, teacher, options = case(kind, batch=3, actions=4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    options |= {"reduction": reduction, "action_mask": mask, "weight": weight}

    def run(student):
        return DISTILL[kind](student, teacher, **options)

    assert torch.autograd.gradcheck(run, (student,))
    assert torch.autograd.gradgradcheck(run, (student,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_reference_agrees_with_the_oracle(kind, reduction):
    student, teacher, options = case(kind, batch=9, actions=7)
    teacher[1, 2] = -torch.inf
    with torch.no_grad():
        student[1, 2] = student[2, 3] = -torch.inf
        student[5] = torch.nan
    mask = torch.rand(9, 7) < 0.7
    mask[3] = False
    weight = torch.rand(9, dtype=torch.float64)
    weight[5] = 0
    options |= {"reduction": reduction, "action_mask": mask, "weight": weight}
    truth = distill_truth(kind, student, teacher, **options)
    loss = distill_reference(kind, student, teacher, **options)
    expected = truth.row_loss if reduction == "none" else truth.loss
    assert np.allclose(loss.detach().numpy(), np.asarray(expected, float), rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert np.allclose(grad.numpy(), truth.grad.astype(float), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_create_graph_gives_the_same_gradient(kind):
    # The differentiable gradient comes from other code; special rows must agree as well.
    student, teacher, options = case(kind, batch=8, actions=6)
    weight = torch.ones(8, dtype=torch.float64)
    weight[0] = 0
    with torch.no_grad():
        student[0] = torch.nan  # silent
        student[1] = -torch.inf  # nothing left
        student[2, 1] = -torch.inf  # the student rules out an action of the teacher
        teacher[3, 1] = -torch.inf  # and the other way round
        student[4, 2] = teacher[4, 2] = -torch.inf
    options |= {"weight": weight, "reduction": "none"}
    loss = DISTILL[kind](student, teacher, **options).sum()
    (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
    (differentiable,) = torch.autograd.grad(loss, student, create_graph=True)
    assert torch.isfinite(grad).all()
    assert torch.allclose(differentiable, grad, rtol=1e-12, atol=1e-15)
    (second,) = torch.autograd.grad(differentiable[5:].sum() + differentiable[0].sum(), student)
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_twice_with_different_grad_output(kind, dtype):
    student, teacher, options = case(kind, dtype, batch=9, actions=18)
    loss = DISTILL[kind](student, teacher, **options)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss, student, torch.full_like(loss, -3.0), retain_graph=True)
    (again,) = torch.autograd.grad(loss, student)
    assert torch.equal(first, again)
    rtol = 2 * torch.finfo(dtype).eps
    atol = 3e-7 if dtype is torch.float16 else 1e-12  # float16 has denormals
    assert torch.allclose(scaled.double(), -3 * first.double(), rtol=rtol, atol=atol)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, student)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_row_has_its_own_grad_output(kind, dtype):
    student, teacher, options = case(kind, dtype, batch=9, actions=18)
    weight = torch.rand(9) + 0.5
    loss = DISTILL[kind](student, teacher, reduction="none", weight=weight, **options)
    factors = torch.tensor([1.0, 0, -1, 2, 3, 100, 1e-3, 5, 7]).to(loss.dtype)
    (grad,) = torch.autograd.grad(loss, student, factors)
    truth = distill_truth(kind, student, teacher, reduction="none", weight=weight, **options)
    expected = truth.grad * factors.double().numpy()[:, None]
    scale = truth.grad_scale * abs(factors.double().numpy())[:, None]
    # Two roundings to the student's dtype, before and after grad_output.
    bound = 2 * torch.finfo(dtype).eps * scale + 6e-8 * (dtype is torch.float16)
    bound += 8 * 2.0 ** (-52 if dtype is torch.float64 else -23) * scale
    assert np.all(abs(grad.double().numpy() - expected) <= bound)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_one_term_of_a_sum(kind):
    student, teacher, options = case(kind)
    alone = torch.autograd.grad(DISTILL[kind](student, teacher, **options), student)[0]
    total = 2 * DISTILL[kind](student, teacher, **options) + student.square().sum()
    (grad,) = torch.autograd.grad(total, student)
    assert torch.allclose(grad, 2 * alone + 2 * student, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_gradient_carries_the_grad_scaler(kind):
    # 2^16 is the initial scale of torch.amp.GradScaler. Rounded before it is multiplied, a gradient
    # below 6e-8 would be lost.
    student, teacher = random_logits(4096, 6, dtype=torch.float16)
    student = (teacher.float() + 0.004 * student.float()).half().requires_grad_()
    options = {**temperature_options(kind, 1.0), "weight": torch.full((4096,), 1e-4)}
    scaled = DISTILL[kind](student, teacher, **options) * 2.0**16
    (grad,) = torch.autograd.grad(scaled, student)
    truth = distill_truth(kind, student, teacher, **options)
    lost = np.float16(truth.grad) == 0
    assert lost.mean() > 0.01
    error = abs(grad.double().numpy() / 2.0**16 - truth.grad)
    assert np.all(error <= 2.0**-11 * abs(truth.grad) + 4e-7 * truth.grad_scale + 6e-8 / 2**16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(kind, dtype):
    student, teacher, options = case(kind, torch.float32)
    plain = DISTILL[kind](student, teacher, **options)
    (plain_grad,) = torch.autograd.grad(plain, student)
    with torch.autocast("cpu", dtype=dtype):
        loss = DISTILL[kind](student, teacher, **options)
        direct = fd.distill_loss_and_grad(kind, student, teacher, **options)
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, plain)
    assert torch.equal(grad, plain_grad)
    assert torch.equal(direct[0], plain)
    assert torch.equal(direct[1], plain_grad)


def test_training_under_autocast():
    model = torch.nn.Linear(4, 6)
    teacher = torch.randn(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(9, 4))
        assert logits.dtype == torch.bfloat16
        loss = fd.distill_kl(logits, teacher)
    assert loss.dtype == torch.float32
    loss.backward()
    assert model.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_value_does_not_depend_on_requires_grad(kind):
    student, teacher, options = case(kind, torch.float32)
    loss = DISTILL[kind](student, teacher, **options)
    detached = DISTILL[kind](student.detach(), teacher, **options)
    assert torch.equal(loss, detached)
    assert not detached.requires_grad
    with torch.inference_mode():
        assert torch.equal(DISTILL[kind](student, teacher, **options), loss)


def test_student_changed_in_place_before_backward_is_noticed():
    student, teacher, options = case("kl", torch.float16)
    logits = student * 1
    loss = fd.distill_kl(logits, teacher, **options)
    logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_logits_are_not_written():
    for kind in KINDS:
        student, teacher, options = case(kind, torch.float32)
        softmax = student.softmax(1)  # what a peer's in-place gradient corrupted
        kept = student.detach().clone(), teacher.clone(), softmax.detach().clone()
        (DISTILL[kind](student, teacher, **options) + softmax.square().sum()).backward()
        assert torch.equal(student.detach(), kept[0])
        assert torch.equal(teacher, kept[1])
        assert torch.equal(softmax.detach(), kept[2])


# torch's own jvp loads decompositions through torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_func_transforms(kind):
    student, teacher, options = case(kind, batch=6, actions=5)
    student = student.detach()

    def run(student, teacher):
        return DISTILL[kind](student, teacher, **options)

    _, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    assert torch.allclose(torch.func.grad(run)(student, teacher), grad, rtol=1e-11, atol=1e-14)
    pairs = student.view(2, 3, 5), teacher.view(2, 3, 5)
    expected = torch.stack([run(s, t) for s, t in zip(*pairs, strict=True)])
    assert torch.allclose(torch.vmap(run)(*pairs), expected, rtol=1e-12)
    per_sample = torch.vmap(torch.func.grad(run))(*pairs)
    expected = torch.stack(
        [fd.distill_loss_and_grad(kind, s, t, **options)[1] for s, t in zip(*pairs, strict=True)]
    )
    assert torch.allclose(per_sample, expected, rtol=1e-11, atol=1e-14)
    _, tangent = torch.func.jvp(lambda s: run(s, teacher), (student,), (torch.ones_like(student),))
    assert torch.allclose(tangent, grad.sum(), rtol=1e-9, atol=1e-12)


def test_loss_and_grad_refuses_func_transforms():
    student = torch.randn(2, 3, 5)
    with pytest.raises(TypeError, match="student_logits must be a dense tensor"):
        torch.vmap(lambda s: fd.distill_loss_and_grad("kl", s, s)[0])(student)


@pytest.mark.parametrize("kind", KINDS)
def test_module(kind):
    student, teacher, options = case(kind, torch.float32)
    module = fd.DistillLoss(kind, **options)
    expected = DISTILL[kind](student, teacher, **options)
    for loss in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(loss(student, teacher), expected)
        assert loss.kind == kind
    assert repr(module).startswith(f"DistillLoss({kind!r}, temperature=")
    assert not list(module.parameters())
    assert not module.state_dict()
    mask, weight = torch.rand(5) < 0.8, torch.rand(4)
    assert torch.equal(
        module(student, teacher, action_mask=mask, weight=weight),
        DISTILL[kind](student, teacher, action_mask=mask, weight=weight, **options),
    )


def test_defaults_are_the_papers():
    student, teacher = random_logits(5, 6)
    for kind in KINDS:
        check_distill(kind, student, teacher)
        assert torch.equal(fd.DistillLoss(kind)(student, teacher), DISTILL[kind](student, teacher))
    assert torch.equal(fd.DistillLoss()(student, teacher), fd.distill_kl(student, teacher))
