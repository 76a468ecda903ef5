# SPDX-License-Identifier: MIT
"""The losses as torch.library operators, which torch.compile, torch.export and dispatch modes need.

Eager code never comes here: the dispatcher costs more than a small batch's kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill._native import core
from fastdistill.losses.arguments import refuse_grad

torch.library.define(
    "fastdistill::distill",
    "(Tensor student_logits, Tensor teacher_logits, Tensor? action_mask, Tensor? weight, int kind, "
    "float temperature, float student_temperature, float beta, str reduction, bool with_grad, "
    "str function) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fastdistill::distill_kl_topk",
    "(Tensor student_logits, Tensor teacher_values, Tensor teacher_indices, Tensor? action_mask, "
    "Tensor? weight, float temperature, float student_temperature, bool tail, str reduction, "
    "bool with_grad) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fastdistill::td",
    "(Tensor q, Tensor action, Tensor target, Tensor? weight, int kind, str reduction, "
    "bool with_grad) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("fastdistill::distill", ("cpu", "cuda"))
def _distill(
    student: Tensor,
    teacher: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    kind: int,
    temperature: float,
    student_temperature: float,
    beta: float,
    reduction: str,
    with_grad: bool,
    function: str,
) -> tuple[Tensor, Tensor]:
    loss, grad = core.distill(
        kind, student, teacher, action_mask, weight, temperature, student_temperature, beta,
        reduction, with_grad, None, function,
    )  # fmt: skip
    return loss, student.new_empty(0) if grad is None else grad


@torch.library.register_fake("fastdistill::distill")
def _distill_fake(
    student: Tensor,
    teacher: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    kind: int,
    temperature: float,
    student_temperature: float,
    beta: float,
    reduction: str,
    with_grad: bool,
    function: str,
) -> tuple[Tensor, Tensor]:
    return _fake_results(student, teacher, reduction, with_grad)


def _fake_results(
    student: Tensor, teacher: Tensor, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 in (student.dtype, teacher.dtype)
    shape = (student.shape[0],) if reduction == "none" else ()
    loss = student.new_empty(shape, dtype=torch.float64 if wide else torch.float32)
    grad = student.new_empty(student.shape) if with_grad else student.new_empty(0)
    return loss, grad


def _distill_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, teacher, action_mask, weight, *options = inputs
    refuse_grad(options[-1], "teacher_logits", teacher)
    refuse_grad(options[-1], "weight", weight)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = options
    if student.dtype is torch.float16:  # as in losses.autograd.Distill
        ctx.save_for_backward(student, teacher, action_mask, weight)
    else:
        ctx.save_for_backward(output[1])


def _distill_backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    grad: Tensor | None = None
    if grad_loss is not None and len(ctx.saved_tensors) == 1:
        grad = _scaled(ctx.saved_tensors[0], grad_loss)
    elif grad_loss is not None:
        student, teacher, action_mask, weight = ctx.saved_tensors
        rows = grad_loss.expand(student.shape[0])
        grad = torch.ops.fastdistill.distill(
            student, teacher, action_mask, rows if weight is None else rows * weight, *ctx.options
        )[1]
    return (grad, *[None] * 10)


def _scaled(grad: Tensor, grad_loss: Tensor) -> Tensor:
    return (grad * (grad_loss.unsqueeze(1) if grad_loss.dim() == 1 else grad_loss)).to(grad.dtype)


torch.library.register_autograd(
    "fastdistill::distill", _distill_backward, setup_context=_distill_setup
)


@torch.library.impl("fastdistill::distill_kl_topk", ("cpu", "cuda"))
def _topk(
    student: Tensor,
    values: Tensor,
    indices: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    temperature: float,
    student_temperature: float,
    tail: bool,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    loss, grad = core.distill_kl_topk(
        student, values, indices, action_mask, weight, temperature, student_temperature, tail,
        reduction, with_grad,
    )  # fmt: skip
    return loss, student.new_empty(0) if grad is None else grad


@torch.library.register_fake("fastdistill::distill_kl_topk")
def _topk_fake(
    student: Tensor,
    values: Tensor,
    indices: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    temperature: float,
    student_temperature: float,
    tail: bool,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    return _fake_results(student, values, reduction, with_grad)


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    student, values, indices, action_mask, weight, *options = inputs
    refuse_grad("distill_kl_topk", "teacher_values", values)
    refuse_grad("distill_kl_topk", "weight", weight)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = options
    if student.dtype is torch.float16:
        ctx.save_for_backward(student, values, indices, action_mask, weight)
    else:
        ctx.save_for_backward(output[1])


def _topk_backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    grad: Tensor | None = None
    if grad_loss is not None and len(ctx.saved_tensors) == 1:
        grad = _scaled(ctx.saved_tensors[0], grad_loss)
    elif grad_loss is not None:
        student, values, indices, action_mask, weight = ctx.saved_tensors
        rows = grad_loss.expand(student.shape[0])
        rows = rows if weight is None else rows * weight
        grad = torch.ops.fastdistill.distill_kl_topk(
            student, values, indices, action_mask, rows, *ctx.options
        )[1]
    return (grad, *[None] * 9)


torch.library.register_autograd(
    "fastdistill::distill_kl_topk", _topk_backward, setup_context=_topk_setup
)


@torch.library.impl("fastdistill::td", ("cpu", "cuda"))
def _td(
    q: Tensor,
    action: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kind: int,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss, td_abs, grad = core.td(kind, q, action, target, weight, reduction, with_grad)
    return loss, td_abs, q.new_empty(0) if grad is None else grad


@torch.library.register_fake("fastdistill::td")
def _td_fake(
    q: Tensor,
    action: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kind: int,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = q.new_empty((q.shape[0],) if reduction == "none" else ())
    grad = q.new_empty(q.shape) if with_grad else q.new_empty(0)
    return loss, q.new_empty(q.shape[0]), grad


def _td_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    refuse_grad("td_loss", "target", inputs[2])
    refuse_grad("td_loss", "weight", inputs[3])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2])


def _td_backward(
    ctx: Any, grad_loss: Tensor | None, _td_abs: Tensor | None, _grad: Tensor | None
) -> tuple[Any, ...]:
    grad = None if grad_loss is None else _scaled(ctx.saved_tensors[0], grad_loss)
    return (grad, *[None] * 6)


torch.library.register_autograd("fastdistill::td", _td_backward, setup_context=_td_setup)
