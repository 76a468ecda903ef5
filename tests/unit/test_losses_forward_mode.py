# SPDX-License-Identifier: MIT
"""Forward-mode AD and batched grad_outputs: against plain torch in float64, and what is refused."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
from support import PassOn, random_logits
from torch.autograd import forward_ad
from torch.nn import functional as F

import fastdistill as fd

# torch's own forward mode loads decompositions through torch.jit.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"
)

_, TEACHER = random_logits(4, 5, dtype=torch.float64)
VALUES, INDICES = TEACHER.log_softmax(1).topk(2)
ACTION = INDICES[:, 1]
TARGET = torch.tensor([0.3, -0.2, 4.0, 0.0], dtype=torch.float64)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, -1.0], dtype=torch.float64)


def plain_jsd(student):
    log_p, log_q = TEACHER.log_softmax(1), student.log_softmax(1)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2


def plain_topk(student):
    def with_tail(known):
        return torch.cat([known, (1 - known.exp().sum(1, keepdim=True)).log()], 1)

    log_p, log_q = with_tail(VALUES), with_tail(student.log_softmax(1).gather(1, INDICES))
    return (log_p.exp() * (log_p - log_q)).sum(1)


def plain_td(q):
    return F.huber_loss(q.gather(1, ACTION[:, None])[:, 0], TARGET, reduction="none")


def distill(kind, **options):
    function = getattr(fd, f"distill_{kind}")
    return lambda student, **more: function(student, TEACHER, **options, **more)


# Row losses in plain torch; ours, with weights and a reduction, are to be their weighted sum.
PLAIN = {
    "kl": lambda s: (TEACHER.softmax(1) * (TEACHER.log_softmax(1) - s.log_softmax(1))).sum(1),
    "reverse_kl": lambda s: (s.softmax(1) * (s.log_softmax(1) - TEACHER.log_softmax(1))).sum(1),
    "jsd": plain_jsd,
    "nll": lambda s: F.cross_entropy(s, TEACHER.argmax(1), reduction="none"),
    "mse": lambda s: (s - TEACHER).square().sum(1),
    "kl_topk": plain_topk,
    "td": plain_td,
}
OURS = {
    "kl": distill("kl", temperature=1.0),
    "reverse_kl": distill("reverse_kl", temperature=1.0),
    "jsd": distill("jsd", temperature=1.0),
    "nll": distill("nll"),
    "mse": distill("mse"),
    "kl_topk": lambda s, **options: fd.distill_kl_topk(s, VALUES, INDICES, **options),
    "td": lambda q, **options: fd.td_loss(q, ACTION, TARGET, **options)[0],
}
all_losses = pytest.mark.parametrize("name", list(OURS))


def losses_of(*dtypes):
    """Names and dtypes; td_loss takes no 16 bits."""
    pairs = [(name, dtype) for name in OURS for dtype in dtypes]
    return pytest.mark.parametrize(
        ("name", "dtype"),
        [pair for pair in pairs if pair[0] != "td" or pair[1] is torch.float64],
        ids=str,
    )


def bound(dtype):
    """Of a gradient that is rounded to that dtype, for allclose."""
    return {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-12 if dtype is torch.float64 else 1e-6}


def case(name, dtype=torch.float64):
    """(student, our weighted sum, plain torch's)."""
    student, _ = random_logits(4, 5, dtype=dtype)

    def ours(student):
        return OURS[name](student, weight=WEIGHT, reduction="sum")

    def plain(student):
        return (PLAIN[name](student) * WEIGHT).sum()

    return student, ours, plain


def gradient(function, student):
    leaf = student.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def close(ours, plain):
    return torch.allclose(ours, plain, rtol=1e-11, atol=1e-13)


@all_losses
@pytest.mark.parametrize("context", [nullcontext, PassOn, torch.no_grad])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_tangent_of_the_loss(name, context, requires_grad):
    student, ours, plain = case(name)
    tangent = torch.linspace(-1, 2, 20, dtype=torch.float64).view(4, 5)
    expected = (gradient(plain, student) * tangent).sum()
    with forward_ad.dual_level(), context():
        dual = forward_ad.make_dual(student.requires_grad_(requires_grad), tangent)
        loss, got = forward_ad.unpack_dual(ours(dual))
        assert close(loss, plain(student))
        assert close(got, expected)


@all_losses
def test_forward_over_reverse(name):
    student, ours, plain = case(name)
    tangent = torch.linspace(-1, 2, 20, dtype=torch.float64).view(4, 5)
    hessian = torch.autograd.functional.hessian(plain, student)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(student.clone().requires_grad_(), tangent)
        (grad,) = torch.autograd.grad(ours(dual), dual, create_graph=True)
        assert close(grad, gradient(plain, student))
        product = forward_ad.unpack_dual(grad).tangent
        assert close(product, (hessian * tangent).sum((2, 3)))


@losses_of(torch.float64, torch.float16)
def test_tangent_of_grad_output(name, dtype):
    student, ours, plain = case(name, dtype)
    expected = gradient(plain, student.double())
    student.requires_grad_()
    with forward_ad.dual_level():
        one = torch.ones((), dtype=torch.float64)
        factor = forward_ad.make_dual(one, torch.full_like(one, 3.0))
        (grad,) = torch.autograd.grad(ours(student) * factor, student)
        tangent = forward_ad.unpack_dual(grad).tangent
    assert torch.allclose(grad.double(), expected, **bound(dtype))
    assert torch.allclose(tangent.double(), 3 * expected, **bound(dtype))


@losses_of(torch.float64, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("create_graph", [False, True])
def test_batches_of_grad_outputs(name, dtype, create_graph):
    student, ours, plain = case(name, dtype)
    expected = gradient(plain, student.double())
    student.requires_grad_()
    factors = torch.tensor([1.0, 1.0, -2.0, 0.0], dtype=torch.float64)
    (grads,) = torch.autograd.grad(
        ours(student), student, factors, is_grads_batched=True, create_graph=create_graph
    )
    assert grads.dtype == dtype
    assert grads.requires_grad == create_graph
    assert torch.allclose(grads.double(), factors[:, None, None] * expected, **bound(dtype))


@losses_of(torch.float64, torch.float16)
def test_vmap_over_backward(name, dtype):
    student, ours, plain = case(name, dtype)
    expected = gradient(plain, student.double())
    loss = ours(student.requires_grad_())
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64)
    grads = torch.vmap(lambda f: torch.autograd.grad(loss, student, f, retain_graph=True)[0])(
        factors
    )
    assert torch.allclose(grads.double(), factors[:, None, None] * expected, **bound(dtype))


@all_losses
def test_vectorized_jacobian_and_hessian(name):
    functional = torch.autograd.functional
    student, ours, plain = case(name)

    def our_rows(student):
        return OURS[name](student, reduction="none")

    expected = functional.jacobian(PLAIN[name], student)
    for strategy in ("reverse-mode", "forward-mode"):
        options = {"vectorize": True, "strategy": strategy}
        assert close(functional.jacobian(our_rows, student, **options), expected)
        assert close(functional.jacobian(ours, student, **options), gradient(plain, student))
    expected = functional.hessian(plain, student)
    for outer in ("reverse-mode", "forward-mode"):
        got = functional.hessian(ours, student, vectorize=True, outer_jacobian_strategy=outer)
        assert close(got, expected)


@all_losses
def test_a_dual_level_without_tangents_changes_no_bit(name):
    student, ours, _ = case(name)
    loss, grad = ours(student), gradient(ours, student)
    with forward_ad.dual_level():
        assert torch.equal(ours(student), loss)
        assert torch.equal(gradient(ours, student), grad)
        detached = forward_ad.make_dual(student, torch.ones_like(student)).detach()
        assert torch.equal(ours(detached), loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tangents_of_narrower_students(dtype):
    student, _, plain = case("kl", dtype)
    tangent = torch.arange(20).view(4, 5).to(dtype)
    options = {"temperature": 1.0, "weight": WEIGHT, "reduction": "sum"}
    with forward_ad.dual_level():
        loss = fd.distill_kl(forward_ad.make_dual(student, tangent), TEACHER.float(), **options)
        got = forward_ad.unpack_dual(loss).tangent
    assert loss.dtype == got.dtype == torch.float32
    expected = (gradient(plain, student.double()) * tangent).sum()
    assert torch.allclose(got.double(), expected, rtol=1e-5)


def test_td_abs_has_no_tangent():
    q, _, _ = case("td")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        td_abs = fd.td_loss(dual, ACTION, TARGET)[1]
        assert forward_ad.unpack_dual(td_abs).tangent is None


def dual(tensor):
    return forward_ad.make_dual(tensor.clone(), torch.ones_like(tensor))


@pytest.mark.parametrize("context", [nullcontext, PassOn, torch.no_grad])
@pytest.mark.parametrize("student_too", [False, True])
def test_tangents_that_would_be_dropped(context, student_too):
    def refused(text, function, *args, **options):
        text += " must not carry a tangent, got one of forward-mode AD; detach it"
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"), context():
            function(*args, **options)

    with forward_ad.dual_level():
        student, _ = random_logits(4, 5, dtype=torch.float64)
        student = dual(student) if student_too else student
        weight = dual(WEIGHT)
        for kind in ("kl", "reverse_kl", "jsd", "nll", "mse"):
            name, function = f"distill_{kind}", getattr(fd, f"distill_{kind}")
            refused(f"{name}: teacher_logits", function, student, dual(TEACHER))
            refused(f"{name}: weight", function, student, TEACHER, weight=weight)
        module = fd.DistillLoss("kl")
        refused("DistillLoss: teacher_logits", module, student, dual(TEACHER))
        topk = fd.distill_kl_topk
        refused("distill_kl_topk: teacher_values", topk, student, dual(VALUES), INDICES)
        refused("distill_kl_topk: weight", topk, student, VALUES, INDICES, weight=weight)
        refused("td_loss: target", fd.td_loss, student, ACTION, dual(TARGET))
        refused("td_loss: weight", fd.td_loss, student, ACTION, TARGET, weight=weight)


@pytest.mark.parametrize("context", [nullcontext, PassOn])
def test_loss_and_grad_refuses_tangents(context):
    student, teacher = random_logits(4, 5)
    arguments = {
        "student_logits": student, "teacher_logits": teacher, "weight": torch.ones(4),
        "out_grad": torch.empty(4, 5),
    }  # fmt: skip
    with forward_ad.dual_level(), context():
        fd.distill_loss_and_grad("kl", **arguments)
        for name, value in arguments.items():
            text = (
                f"distill_loss_and_grad: {name} must not carry a tangent, got one of forward-mode "
                "AD; detach it"
            )
            with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
                fd.distill_loss_and_grad("kl", **{**arguments, name: dual(value)})


def test_gradients_are_refused_beside_a_tangent():
    # Plain torch, which computes the tangent, would hand them out.
    student, teacher = random_logits(4, 5)
    text = "must not require grad, got requires_grad=True; detach it"
    with forward_ad.dual_level():
        with pytest.raises(ValueError, match=f"distill_kl: teacher_logits {text}"):
            fd.distill_kl(dual(student), teacher.requires_grad_())
        with pytest.raises(ValueError, match=f"td_loss: weight {text}"):
            fd.td_loss(dual(student), ACTION, TARGET, weight=torch.ones(4, requires_grad=True))
        with torch.no_grad():
            fd.distill_kl(dual(student), teacher)


@pytest.mark.parametrize("name", ["kl", "kl_topk", "td"])
def test_dual_level_in_a_compiled_function(name):
    student, ours, plain = case(name)
    tangent = torch.linspace(-1, 2, 20, dtype=torch.float64).view(4, 5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(student):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(student, tangent)
            return forward_ad.unpack_dual(ours(dual)).tangent

    torch.compiler.reset()
    got = run(student)
    assert close(got, (gradient(plain, student) * tangent).sum())
    torch.compiler.reset()
