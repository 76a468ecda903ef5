# SPDX-License-Identifier: MIT
"""Rows that are special: masked, silent, infinite, NaN, or not there at all."""

from __future__ import annotations

import pytest
import torch
from support import DTYPES, KINDS, REDUCTIONS, check_distill, random_logits, temperature_options

import fastdistill as fd

WIDTHS = (6, 18, 64, 65, 200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", WIDTHS)
def test_mask_equals_dropping_the_actions(kind, actions):
    student, teacher = random_logits(21, actions)
    mask = torch.zeros(actions, dtype=torch.bool)
    mask[::3] = True
    options = {**temperature_options(kind, 0.5), "reduction": "none"}
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, action_mask=mask, **options)
    few_loss, few_grad = fd.distill_loss_and_grad(
        kind, student[:, mask], teacher[:, mask], **options
    )
    assert torch.allclose(loss, few_loss, rtol=1e-5, atol=1e-6)
    assert torch.allclose(grad[:, mask], few_grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(grad[:, ~mask], torch.zeros_like(grad[:, ~mask]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_actions_may_hold_anything(kind, actions, dtype):
    student, teacher = random_logits(21, actions, dtype=dtype)
    mask = torch.rand(21, actions) < 0.5
    options = {**temperature_options(kind, 0.5), "reduction": "none", "action_mask": mask}
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    for value in (torch.nan, torch.inf, -torch.inf, 6e4):
        dirty_s = torch.where(mask, student, torch.tensor(value, dtype=dtype))
        dirty_t = torch.where(mask, teacher, torch.tensor(value, dtype=dtype))
        dirty_loss, dirty_grad = fd.distill_loss_and_grad(kind, dirty_s, dirty_t, **options)
        assert torch.equal(dirty_loss, loss)
        assert torch.equal(dirty_grad, grad)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_strides(kind):
    student, teacher = random_logits(21, 10)
    mask = torch.rand(10, 21).t() < 0.5
    dense = mask.contiguous()
    loss = fd.DistillLoss(kind)
    assert torch.equal(
        loss(student, teacher, action_mask=mask), loss(student, teacher, action_mask=dense)
    )
    shared = dense[:1]
    assert torch.equal(
        loss(student, teacher, action_mask=shared.expand(21, 10)),
        loss(student, teacher, action_mask=shared[0]),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", WIDTHS)
@pytest.mark.parametrize("by", ["mask", "student", "teacher", "both"])
def test_row_without_any_action(kind, actions, by):
    student, teacher = random_logits(21, actions)
    mask = torch.ones(21, actions, dtype=torch.bool)
    if by == "mask":
        mask[4] = False
    if by in ("student", "both"):
        student[4] = -torch.inf
    if by in ("teacher", "both"):
        teacher[4] = -torch.inf
    options = {**temperature_options(kind, 0.5), "reduction": "none", "action_mask": mask}
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    assert loss[4] == 0
    assert torch.equal(grad[4], torch.zeros(actions))
    check_distill(kind, student, teacher, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_row(kind, actions, dtype):
    student, teacher = random_logits(21, actions, dtype=dtype)
    options = {**temperature_options(kind, 0.5), "reduction": "none"}
    clean, clean_grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    others = torch.arange(21) != 4
    for side in (student, teacher):
        side[4, 1] = torch.nan
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
        assert loss[4].isnan()
        assert grad[4].isnan().any()
        assert torch.equal(loss[others], clean[others])
        assert torch.equal(grad[others], clean_grad[others])
        weight = torch.ones(21)
        weight[4] = 0
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, weight=weight, **options)
        assert loss[4] == 0
        assert torch.equal(grad[4], torch.zeros_like(grad[4]))
        assert torch.equal(loss[others], clean[others])
        side[4, 1] = 0


@pytest.mark.parametrize("kind", KINDS)
def test_plus_infinity_is_not_hidden(kind):
    student, teacher = random_logits(9, 6)
    student[3, 2] = torch.inf
    loss = fd.DistillLoss(kind, reduction="none")(student, teacher)
    assert not torch.isfinite(loss[3])
    assert torch.isfinite(loss[torch.arange(9) != 3]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 5), (0, 300), (7, 0), (0, 0)])
def test_nothing_to_compare(kind, reduction, shape):
    student = torch.empty(shape, requires_grad=True)
    options = {"reduction": reduction}
    loss = getattr(fd, f"distill_{kind}")(student, torch.empty(shape), **options)
    assert loss.shape == ((shape[0],) if reduction == "none" else ())
    assert torch.equal(loss, torch.zeros_like(loss))
    loss.sum().backward()
    assert student.grad.shape == shape


def test_rows_without_actions_are_written():
    # Uninitialised memory is likely to show when the allocator hands back what was just freed.
    for _ in range(5):
        del_me = torch.full((1000,), 7.0)
        del del_me
        loss = fd.distill_kl(torch.empty(1000, 0), torch.empty(1000, 0), reduction="none")
        assert torch.equal(loss, torch.zeros(1000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_weights_zero(kind, reduction):
    student, teacher = random_logits(9, 6)
    student.requires_grad_()
    loss = getattr(fd, f"distill_{kind}")(
        student, teacher, weight=torch.zeros(9), reduction=reduction
    )
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(student.grad, torch.zeros(9, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_full_batch(kind):
    # Gradient accumulation: sum over the micro-batches, divided by one divisor for all.
    student, teacher = random_logits(12, 6, dtype=torch.float64)
    options = temperature_options(kind, 0.5)
    whole, whole_grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    parts = [
        fd.distill_loss_and_grad(kind, s, t, reduction="sum", **options)
        for s, t in zip(student.split([2, 7, 3]), teacher.split([2, 7, 3]), strict=True)
    ]
    assert torch.allclose(sum(loss for loss, _ in parts) / 12, whole, rtol=1e-14)
    assert torch.allclose(torch.cat([grad for _, grad in parts]) / 12, whole_grad, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_may_have_any_float_dtype_and_stride(kind):
    student, teacher = random_logits(9, 6)
    weight = torch.tensor([0.5, 1, 2, 0, 4, 0.25, 1, 1, 8])
    loss = fd.DistillLoss(kind)
    expected = loss(student, teacher, weight=weight)
    for dtype in DTYPES:
        assert torch.equal(loss(student, teacher, weight=weight.to(dtype)), expected)
    spread = torch.stack([weight, weight], 1)[:, 1]
    assert torch.equal(loss(student, teacher, weight=spread), expected)
    one = torch.tensor(2.0).expand(9)
    assert torch.equal(loss(student, teacher, weight=one), 2 * loss(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_bool_weight_keeps_the_rows_that_are_true(dtype):
    """Against the same rows alone; the divisor stays that of all rows."""
    student, teacher = random_logits(21, 18, dtype=dtype)
    every_other = torch.rand(42) < 0.5
    keep = every_other[::2]  # not adjacent
    assert 0 < keep.sum() < 21
    student[~keep] = float("nan")
    student.requires_grad_()
    loss = fd.distill_kl(student, teacher, temperature=0.5, weight=keep, reduction="sum")
    loss.backward()
    few = student.detach()[keep].requires_grad_()
    alone = fd.distill_kl(few, teacher[keep], temperature=0.5, reduction="sum")
    alone.backward()
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=0)
    assert torch.equal(student.grad[keep], few.grad)
    assert torch.equal(student.grad[~keep], torch.zeros_like(student.grad[~keep]))
    mean = fd.distill_kl(student.detach(), teacher, temperature=0.5, weight=keep)
    torch.testing.assert_close(mean, loss.detach() / 21, rtol=1e-6, atol=0)
    values, indices = teacher[keep].float().log_softmax(1).topk(3)
    all_values = torch.zeros(21, 3)
    all_values[keep] = values
    all_indices = torch.arange(3).repeat(21, 1)
    all_indices[keep] = indices
    found = fd.distill_kl_topk(
        student.detach(), all_values, all_indices, tail=False, weight=keep, reduction="sum"
    )
    expected = fd.distill_kl_topk(few.detach(), values, indices, tail=False, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    q = student.detach().to(torch.promote_types(dtype, torch.float32))  # td_loss takes no half
    action, target = torch.zeros(21, dtype=torch.int64), torch.zeros(21, dtype=q.dtype)
    loss, _ = fd.td_loss(q, action, target, weight=keep, reduction="sum")
    alone, _ = fd.td_loss(q[keep], action[keep], target[keep], reduction="sum")
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
