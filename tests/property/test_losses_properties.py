# SPDX-License-Identifier: MIT
"""What must hold for any logits: non-negativity, invariances, identities between the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_oracle import distill_truth
from support import GRAD_FLOOR_ULPS, KINDS, check_distill, temperature_options

import fastdistill as fd

DIVERGENCES = ("kl", "reverse_kl", "jsd")
EPS = 2.0**-23

shapes = st.tuples(st.integers(1, 40), st.integers(1, 80))
temperatures = st.sampled_from([1e-6, 1e-3, 0.01, 0.1, 1.0, 10.0]) | st.floats(1e-3, 10)
scales = st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4])
seeds = st.integers(0, 2**32 - 1)


def draw(shape, scale, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return pair.to(dtype).unbind(0)


@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes, scale=scales, temperature=temperatures, seed=seeds, data=st.data())
def test_matches_the_oracle(kind, shape, scale, temperature, seed, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    student, teacher = draw(shape, scale, seed, dtype)
    options = {**temperature_options(kind, temperature)}
    if data.draw(st.booleans()):
        options["action_mask"] = torch.rand(shape) < data.draw(st.floats(0, 1))
    if data.draw(st.booleans()):
        options["weight"] = torch.randn(shape[0]) * data.draw(st.sampled_from([0.0, 1.0, 100.0]))
    options["reduction"] = data.draw(st.sampled_from(["batchmean", "mean", "sum", "none"]))
    check_distill(kind, student, teacher, **options)


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(shape=shapes, scale=scales, temperature=temperatures, seed=seeds)
def test_never_negative_and_finite(kind, shape, scale, temperature, seed):
    student, teacher = draw(shape, scale, seed)
    loss, grad = fd.distill_loss_and_grad(
        kind, student, teacher, temperature=temperature, reduction="none"
    )
    assert (loss >= 0).all()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
    if kind == "jsd":
        assert (loss <= math.log(2) * (1 + 8 * EPS)).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(shape=shapes, scale=scales, seed=seeds)
def test_equal_sides_have_no_loss(kind, shape, scale, seed):
    student, _ = draw(shape, scale, seed)
    loss, grad = fd.distill_loss_and_grad(
        kind, student, student.clone(), temperature=1.0, reduction="none"
    )
    assert torch.equal(loss, torch.zeros_like(loss))
    assert (grad.abs() <= 2 * EPS).all()


@pytest.mark.parametrize("kind", [*DIVERGENCES, "nll"])
@given(shape=shapes, seed=seeds, shift=st.integers(-1000, 1000))
def test_a_shift_of_all_logits_changes_nothing(kind, shape, seed, shift):
    # Logits on a grid of 1/8, so that the shifted ones are exact.
    student, teacher = (torch.round(x * 8) / 8 for x in draw(shape, 3.0, seed))
    options = {**temperature_options(kind, 0.5), "reduction": "none"}
    expected = fd.distill_loss_and_grad(kind, student, teacher, **options)
    got = fd.distill_loss_and_grad(kind, student + shift, teacher - shift, **options)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes, seed=seeds)
def test_rows_may_change_places(kind, shape, seed):
    student, teacher = draw(shape, 2.0, seed)
    order = torch.randperm(shape[0])
    options = {**temperature_options(kind, 0.5), "reduction": "none"}
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    got, got_grad = fd.distill_loss_and_grad(kind, student[order], teacher[order], **options)
    assert torch.equal(got, loss[order])
    assert torch.equal(got_grad, grad[order])


@pytest.mark.parametrize("kind", KINDS)
@given(shape=shapes, seed=seeds)
def test_actions_may_change_places(kind, shape, seed):
    student, teacher = draw(shape, 2.0, seed, torch.float64)
    order = torch.randperm(shape[1])
    options = {**temperature_options(kind, 0.5), "reduction": "none"}
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    got, got_grad = fd.distill_loss_and_grad(kind, student[:, order], teacher[:, order], **options)
    assert torch.allclose(got, loss, rtol=1e-12, atol=1e-13)
    assert torch.allclose(got_grad, grad[:, order], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", DIVERGENCES)
@given(shape=shapes, seed=seeds, exponent=st.integers(-6, 6))
def test_temperature_divides_the_teacher(kind, shape, seed, exponent):
    # A power of 2, so that the scaled logits are exact; nearly the same bits, as the factor that
    # the kernel multiplies with is rounded alike.
    student, teacher = draw(shape, 2.0, seed, torch.float64)
    temperature = 2.0**exponent
    expected = fd.distill_loss_and_grad(kind, student, teacher, temperature=temperature)
    got = fd.distill_loss_and_grad(kind, student, teacher / temperature, temperature=1.0)
    assert torch.allclose(got[0], expected[0], rtol=1e-13)
    assert torch.allclose(got[1], expected[1], rtol=1e-12, atol=1e-15)
    both = fd.distill_loss_and_grad(
        kind, student, teacher, temperature=temperature, student_temperature=temperature
    )
    scaled = fd.distill_loss_and_grad(
        kind, student / temperature, teacher / temperature, temperature=1.0
    )
    assert torch.allclose(both[0], scaled[0], rtol=1e-13, atol=1e-15)
    assert torch.allclose(both[1] * temperature, scaled[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", [*DIVERGENCES, "nll"])
@given(shape=shapes, scale=scales, seed=seeds)
def test_gradient_of_a_row_sums_to_zero(kind, shape, scale, seed):
    student, teacher = draw(shape, scale, seed)
    _, grad = fd.distill_loss_and_grad(kind, student, teacher, reduction="none")
    truth = distill_truth(kind, student, teacher, reduction="none")
    size = 6 * truth.grad_scale + GRAD_FLOOR_ULPS * truth.grad_floor
    assert np.all(abs(grad.double().numpy().sum(1)) <= EPS * shape[1] * size[:, 0])


@given(shape=shapes, seed=seeds, beta=st.floats(0.05, 0.95))
def test_jsd_exchanges_its_sides_with_beta(shape, seed, beta):
    student, teacher = draw(shape, 2.0, seed, torch.float64)
    one = fd.distill_jsd(student, teacher, beta=beta, temperature=1.0)
    other = fd.distill_jsd(teacher, student, beta=1 - beta, temperature=1.0)
    assert torch.allclose(one, other, rtol=1e-11, atol=1e-15)


@given(shape=shapes, seed=seeds, weight=st.floats(-8, 8, width=16))
def test_a_weight_multiplies_its_row(shape, seed, weight):
    student, teacher = draw(shape, 2.0, seed)
    loss, grad = fd.distill_loss_and_grad("kl", student, teacher, reduction="none")
    weights = torch.full((shape[0],), weight)
    got, got_grad = fd.distill_loss_and_grad(
        "kl", student, teacher, weight=weights, reduction="none"
    )
    assert torch.allclose(got, loss * weight, rtol=4 * EPS)
    assert torch.allclose(got_grad, grad * weight, rtol=8 * EPS, atol=8 * EPS * abs(weight))


@given(batch=st.integers(1, 60), actions=st.integers(1, 30), seed=seeds, scale=scales)
def test_td_loss_is_convex_and_even(batch, actions, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, actions, generator=generator) * scale
    action = torch.randint(actions, (batch,), generator=generator)
    target = torch.randn(batch, generator=generator) * scale
    for kind in ("huber", "mse"):
        loss, td_abs = fd.td_loss(q, action, target, kind=kind, reduction="none")
        mirrored, mirrored_abs = fd.td_loss(-q, action, -target, kind=kind, reduction="none")
        assert (loss >= 0).all()
        assert torch.equal(loss, mirrored)
        assert torch.equal(td_abs, mirrored_abs)
        assert (loss[td_abs == 0] == 0).all()
        below_square = loss <= td_abs.square() * (1 + 4 * EPS)
        assert below_square.all()
