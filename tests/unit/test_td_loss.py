# SPDX-License-Identifier: MIT
"""td_loss against the oracle: kinds, reductions, weights, strides, edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_oracle import td_truth, to_numpy
from support import epsilon

import fastdistill as fd

TD_ULPS = 4.0


def td_case(batch, actions, dtype, *, td_scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed + actions)
    q = torch.randn(batch, actions, dtype=dtype, generator=generator) * td_scale
    action = torch.randint(actions, (batch,), generator=generator)
    target = torch.randn(batch, dtype=dtype, generator=generator) * td_scale
    return q, action, target


def check_td(q, action, target, **options):
    reduction = options.get("reduction", "mean")
    rows, size, expected_grad = td_truth(q, action, target, **options)
    leaf = q.detach().clone().requires_grad_()
    loss, td_abs = fd.td_loss(leaf, action, target, **options)
    assert loss.dtype == td_abs.dtype == q.dtype
    assert not td_abs.requires_grad
    eps = epsilon(q)
    real = rows.dtype.type
    assert np.all(abs(to_numpy(td_abs, real) - size) <= eps * size)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / max(len(rows), 1)}[reduction]
    # Both terms of the difference count: the error of td itself is relative to it, that of its
    # square twice that.
    bound = TD_ULPS * eps * (abs(expected) if reduction == "none" else abs(rows).sum())
    assert np.all(abs(to_numpy(loss, real) - expected) <= bound)
    loss.sum().backward()
    error = abs(to_numpy(leaf.grad, real) - expected_grad)
    assert np.all(error <= TD_ULPS * eps * abs(expected_grad))
    with torch.no_grad():
        again, again_abs = fd.td_loss(q, action, target, **options)
    assert torch.equal(again, loss)
    assert torch.equal(again_abs, td_abs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["huber", "mse"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_the_oracle(dtype, kind, reduction, weighted):
    for batch, actions in ((1, 1), (32, 18), (257, 6)):
        q, action, target = td_case(batch, actions, dtype)
        weight = None
        if weighted:
            weight = torch.rand(batch, dtype=dtype)
            weight[0] = 0
        check_td(q, action, target, weight=weight, kind=kind, reduction=reduction)


def test_equals_torch():
    q, action, target = td_case(32, 18, torch.float64)
    q.requires_grad_()
    taken = q.gather(1, action[:, None])[:, 0]
    for kind, expected in (
        ("huber", torch.nn.functional.huber_loss(taken, target)),
        ("mse", torch.nn.functional.mse_loss(taken, target)),
    ):
        loss, td_abs = fd.td_loss(q, action, target, kind=kind)
        assert torch.allclose(loss, expected, rtol=1e-14)
        assert torch.equal(td_abs, (taken - target).abs())
        (grad,) = torch.autograd.grad(loss, q)
        (expected_grad,) = torch.autograd.grad(expected, q, retain_graph=True)
        assert torch.allclose(grad, expected_grad, rtol=1e-14)


@pytest.mark.parametrize("td", [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
def test_huber_joins_at_one(td):
    q = torch.tensor([[7.0, td]], requires_grad=True)
    loss, td_abs = fd.td_loss(q, torch.tensor([1]), torch.zeros(1))
    loss.backward()
    assert loss.item() == (td * td / 2 if abs(td) <= 1 else abs(td) - 0.5)
    assert td_abs.item() == abs(td)
    assert q.grad.tolist() == [[0.0, max(-1.0, min(1.0, td))]]


def test_strides_and_dtypes_of_the_vectors():
    q, action, target = td_case(24, 7, torch.float32)
    expected = fd.td_loss(q, action, target)
    wide = torch.empty(24, 20)
    wide[:, 5:12] = q
    for view in (q.t().contiguous().t(), wide[:, 5:12]):
        loss = fd.td_loss(view, action, target)
        assert torch.equal(loss[0], expected[0])
        leaf = view.detach().requires_grad_()
        fd.td_loss(leaf, action, target)[0].backward()
        plain = q.detach().requires_grad_()
        fd.td_loss(plain, action, target)[0].backward()
        assert torch.equal(leaf.grad, plain.grad)
    spread_action = torch.stack([action, action], 1)[:, 0]
    spread_target = torch.stack([target, target], 1)[:, 0]
    assert torch.equal(fd.td_loss(q, spread_action, spread_target)[0], expected[0])
    assert torch.equal(fd.td_loss(q, action, target.double())[0], expected[0])
    one = fd.td_loss(q[:1].expand(24, 7), action, target, reduction="none")[0]
    assert torch.equal(one, fd.td_loss(q[:1].repeat(24, 1), action, target, reduction="none")[0])


def test_weight_zero_silences_a_nan_row():
    q, action, target = td_case(6, 3, torch.float32)
    q[2] = torch.nan
    weight = torch.ones(6)
    q.requires_grad_()
    assert fd.td_loss(q, action, target, weight=weight)[0].isnan()
    weight[2] = 0
    loss, td_abs = fd.td_loss(q, action, target, weight=weight)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(q.grad[2], torch.zeros(3))
    assert td_abs[2].isnan()  # a priority of a row is reported as it is
    weight[2] = 1
    loss, _ = fd.td_loss(q.detach().requires_grad_(), action, target, weight=weight)
    assert loss.isnan()


def gradient_eager(run, q):
    leaf = q.clone().requires_grad_()
    return torch.autograd.grad(run(leaf), leaf)[0]


def gradient_with_graph(run, q):
    leaf = q.clone().requires_grad_()
    return torch.autograd.grad(run(leaf), leaf, create_graph=True)[0].detach()


def gradient_func(run, q):
    return torch.func.grad(run)(q)


def gradient_forward(run, q):
    return torch.func.jacfwd(run)(q)


BACKWARD = [gradient_eager, gradient_with_graph, gradient_func]


# torch's own jvp loads decompositions through torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("gradient", [*BACKWARD, gradient_forward], ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", ["huber", "mse"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_silent_rows_in_every_gradient(gradient, kind, reduction):
    q, action, target = td_case(9, 3, torch.float64)
    weight = torch.rand(9, dtype=torch.float64) + 0.5
    weight[:5] = 0
    q[0] = torch.nan
    q[1] = torch.inf
    target[2], target[3], target[4] = torch.nan, torch.inf, -torch.inf

    def run(q):
        return fd.td_loss(q, action, target, weight=weight, kind=kind, reduction=reduction)[0]

    # The rows that count, in plain torch, as if there were no others.
    live = q[5:].clone().requires_grad_()
    taken = live.gather(1, action[5:, None])[:, 0]
    plain = {"huber": torch.nn.functional.huber_loss, "mse": torch.nn.functional.mse_loss}[kind]
    rows = plain(taken, target[5:], reduction="none") * weight[5:]
    expected_loss = rows.sum() / (9 if reduction == "mean" else 1)
    (expected,) = torch.autograd.grad(expected_loss, live)
    assert torch.allclose(run(q), expected_loss, rtol=1e-14)
    grad = gradient(run, q)
    assert torch.equal(grad[:5], torch.zeros(5, 3, dtype=torch.float64))
    assert torch.allclose(grad[5:], expected, rtol=1e-14)


@pytest.mark.parametrize("kind", ["huber", "mse"])
def test_silent_rows_in_the_second_derivative(kind):
    q, action, target = td_case(4, 3, torch.float64)
    target[0], target[1] = torch.nan, torch.inf
    weight = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    q[2, action[2]] = target[2] + 0.5  # huber's quadratic part
    q[3, action[3]] = target[3] - 3.0  # and its linear one
    hessian = torch.autograd.functional.hessian(
        lambda q: fd.td_loss(q, action, target, weight=weight, kind=kind, reduction="sum")[0], q
    )
    expected = torch.zeros(4, 3, 4, 3, dtype=torch.float64)
    expected[2, action[2], 2, action[2]] = 1.0 if kind == "huber" else 2.0
    expected[3, action[3], 3, action[3]] = 0.0 if kind == "huber" else 4.0
    assert torch.equal(hessian, expected)


# Not forward mode, in which an infinite slope meets the other rows' tangents of 0.
@pytest.mark.parametrize("gradient", BACKWARD, ids=lambda way: way.__name__)
def test_infinite_errors_that_count(gradient):
    q, action, target = td_case(4, 3, torch.float64)
    target[0], target[1] = torch.inf, -torch.inf
    q[2, action[2]], q[3, action[3]] = torch.inf, torch.nan
    for kind, slopes in (
        ("huber", [-1.0, 1.0, 1.0, torch.nan]),
        ("mse", [-torch.inf, torch.inf, torch.inf, torch.nan]),
    ):

        def run(q, kind=kind):
            return fd.td_loss(q, action, target, kind=kind, reduction="sum")[0]

        taken = gradient(run, q).gather(1, action[:, None])[:, 0]
        assert torch.equal(taken.isnan(), torch.tensor(slopes).isnan())
        assert taken[:3].tolist() == slopes[:3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("other", [torch.float16, torch.float32, torch.float64], ids=str)
def test_plain_torch_has_the_dtypes_of_the_native_call(dtype, other):
    q, action, target = td_case(6, 3, dtype)
    target = (q.gather(1, action[:, None])[:, 0].double() + 2.0**-40).to(other)
    for weight in (None, torch.rand(6).to(other), torch.tensor([True, False] * 3)):
        options = {"weight": weight, "kind": "mse", "reduction": "none"}

        def run(q, options=options):
            return fd.td_loss(q, action, target, **options)

        loss, td_abs = torch.vmap(run)(q[None])
        expected = run(q)
        assert (loss.dtype, td_abs.dtype) == (dtype, dtype)
        # Rounded to q's dtype before they are used: some of the differences are 0 only then.
        assert torch.allclose(loss[0], expected[0], rtol=1e-6, atol=0.0)
        assert torch.equal(td_abs[0], expected[1])
        assert torch.func.grad(lambda q, run=run: run(q)[0].sum())(q).dtype == dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(reduction):
    q = torch.empty(0, 4, requires_grad=True)
    loss, td_abs = fd.td_loss(
        q, torch.empty(0, dtype=torch.int64), torch.empty(0), reduction=reduction
    )
    loss.sum().backward()
    assert loss.sum() == 0
    assert td_abs.shape == (0,)
    assert q.grad.shape == (0, 4)


def test_gradcheck_and_second_derivative():
    q, action, target = td_case(5, 3, torch.float64)
    q.requires_grad_()
    weight = torch.rand(5, dtype=torch.float64)
    for kind in ("huber", "mse"):
        for reduction in ("mean", "sum", "none"):
            options = {"weight": weight, "kind": kind, "reduction": reduction}

            def run(q, options=options):
                return fd.td_loss(q, action, target, **options)[0]

            assert torch.autograd.gradcheck(run, (q,))
            assert torch.autograd.gradgradcheck(run, (q,))


def test_grad_output_other_than_one():
    q, action, target = td_case(5, 3, torch.float64)
    q.requires_grad_()
    factors = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    loss, _ = fd.td_loss(q, action, target, reduction="none")
    (grad,) = torch.autograd.grad(loss, q, factors)
    _, _, expected = td_truth(q, action, target, reduction="none")
    assert np.allclose(grad.numpy(), expected * factors.numpy()[:, None], rtol=1e-14)
    mean, _ = fd.td_loss(q, action, target)
    (twice,) = torch.autograd.grad(2 * mean, q)
    assert np.allclose(twice.numpy(), expected * 2 / 5, rtol=1e-14)


def test_func_transforms():
    q, action, target = td_case(5, 3, torch.float64)
    stack = torch.stack([q, 2 * q])

    def run(q):
        return fd.td_loss(q, action, target)[0]

    expected = torch.stack([run(stack[0]), run(stack[1])])
    assert torch.allclose(torch.vmap(run)(stack), expected, rtol=1e-14)
    _, _, grad = td_truth(q, action, target)
    assert np.allclose(torch.func.grad(run)(q).numpy(), grad, rtol=1e-14)
