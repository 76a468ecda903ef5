# SPDX-License-Identifier: MIT
"""distill_kl_topk against the oracle: row lengths, dtypes, options, and its own edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_oracle import topk_truth
from support import DTYPES, REDUCTIONS, random_logits
from topk_support import check_topk, loss_and_grad, random_cases, random_topk, topk_of

import fastdistill as fd


def coarse(logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the k actions and of all others together, float64."""
    p = logits.double().softmax(1)
    known = p.gather(1, indices)
    return torch.cat([known, p.scatter(1, indices, 0).sum(1, keepdim=True)], 1).log()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("actions", [1, 2, 3, 15, 16, 17, 18, 63, 64, 65, 257, 2049])
def test_row_lengths(actions, dtype):
    for k in {1, min(3, actions), min(17, actions), max(1, actions - 1), actions}:
        check_topk(random_topk(5, actions, k, dtype=dtype), reduction="none")
        check_topk(random_topk(5, actions, k, dtype=dtype), tail=False, temperature=0.5)


@pytest.mark.parametrize("pair", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64),
                                  (torch.float64, torch.float16)])  # fmt: skip
def test_mixed_dtypes(pair):
    check_topk(random_topk(7, 100, 9, dtype=pair[0], teacher_dtype=pair[1]), reduction="none")


def test_a_vocabulary():
    check_topk(random_topk(2, 32_000, 64, q_scale=3.0), reduction="none")


@pytest.mark.parametrize("mask", ["none", "shared", "rows"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options(reduction, weighted, mask):
    generator = torch.Generator().manual_seed(5)
    for actions, tail in ((6, True), (100, True), (100, False)):
        options = {"reduction": reduction, "tail": tail}
        shape = {"none": None, "shared": (actions,), "rows": (19, actions)}[mask]
        if shape is not None:
            options["action_mask"] = torch.rand(shape, generator=generator) < 0.6
        if weighted:
            options["weight"] = torch.randn(19, generator=generator)
            options["weight"][3] = 0
        check_topk(random_topk(19, actions, 3), **options)


@pytest.mark.parametrize("q_scale", [0.01, 1.0, 100.0, 1e4])
def test_temperatures(q_scale):
    for dtype in DTYPES:
        for temperature in (1e-6, 0.01, 1.0, 10.0):
            case = random_topk(9, 40, 5, dtype=dtype, q_scale=q_scale)
            check_topk(case, student_temperature=temperature, reduction="none")
            student, teacher = random_logits(9, 40, dtype=dtype, q_scale=q_scale)
            check_topk((student, *teacher.topk(5)), tail=False, temperature=temperature)


def test_by_hand():
    # p = (1/2, 1/4, rest 1/4) and q = (1/4, 1/4, rest 1/2): KL = (log 2) / 2 - (log 2) / 4.
    student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([[0.25, 0.5]], dtype=torch.float64).log()
    loss = fd.distill_kl_topk(student, values, torch.tensor([[3, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2) / 4, rel=1e-14)
    # Each action of the tail gets half of q - p = 1/2 - 1/4.
    expected = torch.tensor([[0.125, -0.25, 0.125, 0.0]], dtype=torch.float64)
    assert torch.allclose(student.grad, expected, atol=1e-15)


def test_is_the_kl_of_the_coarse_distributions():
    student, teacher = random_logits(8, 50, dtype=torch.float64, q_scale=2.0)
    values, indices = topk_of(teacher, 6, torch.float64)
    loss = fd.distill_kl_topk(student, values, indices, reduction="none")
    p, q = coarse(teacher, indices), coarse(student, indices)
    assert torch.allclose(loss, (p.exp() * (p - q)).sum(1), rtol=1e-12)
    # No merging of actions adds to a divergence, and none is lost with all known.
    whole = fd.distill_kl(student, teacher, temperature=1.0, reduction="none")
    assert (loss <= whole).all()
    everything = fd.distill_kl_topk(student, *topk_of(teacher, 50, torch.float64), reduction="none")
    assert torch.allclose(everything, whole, rtol=1e-12)


def test_without_tail_is_the_kl_of_the_k():
    student, teacher = random_logits(8, 50, dtype=torch.float64)
    student.requires_grad_()
    values, indices = teacher.topk(6)  # logits
    loss = fd.distill_kl_topk(student, values, indices, tail=False, temperature=0.3)
    expected = fd.distill_kl(student.gather(1, indices), values, temperature=0.3)
    assert torch.allclose(loss, expected, rtol=1e-13)
    (grad,) = torch.autograd.grad(loss, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    assert torch.allclose(grad, expected_grad, atol=1e-16)


@pytest.mark.parametrize("tail", [True, False])
def test_a_truncated_kl_is_none(tail):
    # It is below 0 for a student that is surer than the teacher of what the teacher is sure of.
    teacher = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    values, indices = topk_of(teacher, 1, torch.float32)
    student = 2 * teacher
    p, q = teacher.softmax(1)[0, 0], student.softmax(1)[0, 0]
    assert p * (p.log() - q.log()) < 0
    loss = fd.distill_kl_topk(student, values, indices, tail=tail)
    assert loss >= 0
    assert (loss > 0) == tail  # one action alone says nothing


def test_log_probabilities_are_valid_logits():
    # Softmax takes them back to what they were: a stored label may be either.
    student, teacher = random_logits(8, 18, dtype=torch.float64, q_scale=3.0)
    log_p = teacher.log_softmax(1)
    for loss in (fd.distill_kl, fd.distill_reverse_kl, fd.distill_jsd):
        options = {"temperature": 1.0, "reduction": "none"}
        expected = loss(student, teacher, **options)
        assert torch.allclose(loss(student, log_p, **options), expected, rtol=1e-12)
        log_q = student.log_softmax(1)
        assert torch.allclose(loss(log_q, log_p, **options), expected, rtol=1e-12)
    sharp = fd.distill_kl(student, log_p, temperature=0.1)
    assert torch.allclose(sharp, fd.distill_kl(student, teacher, temperature=0.1), rtol=1e-12)
    values, indices = log_p.topk(4)
    known = fd.distill_kl_topk(student, values, indices, tail=False, temperature=0.1)
    logits = teacher.gather(1, indices)
    expected = fd.distill_kl_topk(student, logits, indices, tail=False, temperature=0.1)
    assert torch.allclose(known, expected, rtol=1e-12)


def test_order_and_choice_of_the_k_are_free():
    student, teacher = random_logits(6, 30, dtype=torch.float64)
    indices = torch.stack([torch.randperm(30)[:7] for _ in range(6)])
    values = teacher.log_softmax(1).gather(1, indices)
    loss = fd.distill_kl_topk(student, values, indices)
    again = fd.distill_kl_topk(student, values.flip(1), indices.flip(1))
    assert torch.allclose(loss, again, rtol=1e-13)
    check_topk((student, values, indices), reduction="none")


def test_a_student_far_from_the_tail():
    # e^-200 is no float32, its logarithm is: by its own maximum the tail's sum is exact.
    student = torch.tensor([[200.0, 0.0, 0.5, -1.0], [-200.0, 0.0, 0.5, -1.0]])
    values = torch.tensor([[0.5], [0.5]]).log()
    indices = torch.tensor([[0], [0]])
    check_topk((student, values, indices), reduction="none")
    loss, _ = loss_and_grad((student, values, indices), reduction="none")
    tail = student[0, 1:].logsumexp(0).item()
    assert loss[0].item() == pytest.approx(0.5 * (200 - tail) - np.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_probabilities_above_one(dtype):
    # Equal actions whose logarithm the dtype rounds upwards: nothing is left for the bucket.
    for actions in (60, 1000, 30_000):
        student, teacher = torch.zeros(2, 2, actions, dtype=dtype)
        values, indices = topk_of(teacher, actions - 1, dtype)
        check_topk((student, values, indices), reduction="none")


def test_teacher_mass_of_zero():
    student, _ = random_logits(3, 10)
    values = torch.tensor([[-0.1, -torch.inf], [0.0, -torch.inf], [-torch.inf, -torch.inf]])
    case = (student, values, torch.tensor([[1, 2]] * 3))
    check_topk(case, reduction="none")
    check_topk(case, reduction="none", tail=False)
    # All in the tail: -log of what the student has there.
    loss, _ = loss_and_grad(case, reduction="none")
    rest = student[2].softmax(0)[[0, *range(3, 10)]].sum()
    assert loss[2].item() == pytest.approx(-rest.log().item(), rel=1e-5)


def test_student_rules_out():
    student, values, indices = random_topk(4, 12, 3)
    student[1, indices[1, 2]] = -torch.inf  # one of the k
    student[2] = student[2].masked_fill(torch.ones(12).scatter(0, indices[2], 0).bool(), -torch.inf)
    student[3] = -torch.inf
    check_topk((student, values, indices), reduction="none")
    loss, grad = loss_and_grad((student, values, indices), reduction="none")
    assert torch.isposinf(loss[[1, 2]]).all()
    assert torch.isfinite(grad).all()
    assert (grad[2][student[2] == -torch.inf] == 0).all()
    assert loss[3] == 0


def test_masked_bucket():
    # All of the tail masked: the k are what remains on both sides, whatever rounding leaves to 1.
    student, teacher = random_logits(5, 12)
    mask = torch.zeros(5, 12, dtype=torch.bool)
    mask[:, :4] = True
    values, indices = topk_of(teacher.masked_fill(~mask, -torch.inf), 4, torch.float32)
    options = {"action_mask": mask, "reduction": "none"}
    check_topk((student, values, indices), **options)
    loss = fd.distill_kl_topk(student, values, indices, **options)
    expected = fd.distill_kl(student, teacher, temperature=1.0, **options)
    assert torch.allclose(loss, expected, rtol=1e-5)
    mask[2] = False
    check_topk((student, values, indices), **options)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("where", ["known", "tail", "teacher"])
def test_nan_stays_in_its_row(where, tail):
    student, values, indices = random_topk(5, 40, 3)
    options = {"tail": tail, "reduction": "none"}
    expected = loss_and_grad((student, values, indices), **options)
    if where == "teacher":
        values[2, 1] = torch.nan
    else:
        student[
            2,
            indices[2, 1] if where == "known" else (set(range(4)) - set(indices[2].tolist())).pop(),
        ] = torch.nan
    loss, grad = loss_and_grad((student, values, indices), **options)
    others = [0, 1, 3, 4]
    assert torch.equal(loss[others], expected[0][others])
    assert torch.equal(grad[others], expected[1][others])
    if tail or where != "tail":
        assert loss[2].isnan()
        assert grad[2].isnan().any()
    silent = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    check_topk((student, values, indices), weight=silent, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(reduction):
    student = torch.empty(0, 4, requires_grad=True)
    values, indices = torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int64)
    loss = fd.distill_kl_topk(student, values, indices, reduction=reduction)
    assert loss.shape == ((0,) if reduction == "none" else ())
    loss.sum().backward()
    assert loss.sum() == 0
    assert student.grad.shape == (0, 4)


def test_strides():
    student, values, indices = random_topk(6, 33, 5)
    expected = loss_and_grad((student, values, indices))
    wide = torch.full((6, 50), torch.nan)
    wide[:, 7:40] = student
    wide_values = torch.full((12, 8), torch.nan)
    wide_values[::2, 1:6] = values
    wide_indices = torch.full((6, 9), -1)
    wide_indices[:, 2:7] = indices
    for case in (
        (student.t().contiguous().t(), values.t().contiguous().t(), indices.t().contiguous().t()),
        (wide[:, 7:40], wide_values[::2, 1:6], wide_indices[:, 2:7]),
        (student, values, torch.stack([indices, indices], 2)[:, :, 0]),
    ):
        for got, want in zip(loss_and_grad(case), expected, strict=True):
            assert torch.equal(got, want)
    shared = (student[:1].expand(6, 33), values[:1].expand(6, 5), indices[:1].expand(6, 5))
    for got, want in zip(
        loss_and_grad(shared), loss_and_grad([x.contiguous() for x in shared]), strict=True
    ):
        assert torch.equal(got, want)


def test_same_bits_on_any_number_of_threads():
    case = random_topk(300, 700, 9)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(loss_and_grad(case))
    torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])
    rows = loss_and_grad(case, reduction="none")[0]
    alone = loss_and_grad([x[17:18] for x in case], reduction="none")[0]
    assert torch.equal(rows[17:18], alone)


def test_training_reaches_the_teacher():
    teacher = 2 * torch.randn(
        1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    values, indices = topk_of(teacher, 4, torch.float64)
    student = torch.zeros(1, 12, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        (grad,) = torch.autograd.grad(fd.distill_kl_topk(student, values, indices), student)
        student = (student - 2 * grad).detach().requires_grad_()
    assert torch.allclose(coarse(student, indices), coarse(teacher, indices), atol=1e-6)


def test_random_rows_within_the_bounds():
    for case, options in random_cases(60, 40, seed=2):
        check_topk(case, **options)


def test_reference_agrees_with_the_oracle():
    from fastdistill.losses.reference import topk_reference

    student, values, indices = random_topk(9, 7, 3, dtype=torch.float64)
    student[1, 2] = student[2, 3] = -torch.inf
    student[5] = torch.nan
    values[4, 2] = -torch.inf
    student.requires_grad_()
    mask = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[3] = False
    weight = torch.rand(9, dtype=torch.float64)
    weight[5] = 0
    for reduction in REDUCTIONS:
        for tail in (True, False):
            options = {"reduction": reduction, "action_mask": mask, "weight": weight, "tail": tail}
            options["student_temperature"] = 0.7
            truth = topk_truth(student, values, indices, **options)
            loss = topk_reference(student, values, indices, **options)
            expected = truth.row_loss if reduction == "none" else truth.loss
            assert np.allclose(loss.detach().numpy(), np.asarray(expected, float), rtol=1e-11)
            (grad,) = torch.autograd.grad(loss.sum(), student)
            assert np.allclose(grad.numpy(), truth.grad.astype(float), rtol=1e-11, atol=1e-14)
