# SPDX-License-Identifier: MIT
"""The losses under eager autograd: one node around one native call.

Kept apart from `losses` because only calls that need a gradient come here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdistill._native import core
from fastdistill.losses.reference import (
    KINDS,
    TD_KINDS,
    distill_reference,
    td_reference,
    topk_reference,
)

# kind, temperature, student_temperature, beta, reduction, and the function to name in errors
Options = tuple[int, float, float, float, str, str]
# temperature, student_temperature, tail, reduction
TopkOptions = tuple[float, float, bool, str]

_native_distill = core.distill
_native_topk = core.distill_kl_topk
_native_td = core.td
_is_grad_enabled = torch.is_grad_enabled
_has_storage = torch._C._has_storage


def reference_of(
    student: Tensor,
    teacher: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    options: Options,
) -> Tensor:
    """The same loss in plain torch operations."""
    code, temperature, student_temperature, beta, reduction, _ = options
    return distill_reference(
        KINDS[code], student, teacher, temperature=temperature,
        student_temperature=student_temperature, beta=beta, action_mask=action_mask, weight=weight,
        reduction=reduction,
    )  # fmt: skip


class Distill(torch.autograd.Function):
    """Autograd around the native call: the gradient is ready before backward begins."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        action_mask: Tensor | None,
        weight: Tensor | None,
        options: Options,
    ) -> Tensor:
        """Computes the loss, and the gradient that backward will hand out."""
        code, temperature, student_temperature, beta, reduction, function = options
        loss: Tensor
        # A float16 gradient must carry grad_output before it is rounded: the scale of a GradScaler
        # is what keeps it from underflowing. So that dtype computes its gradient in backward.
        loss, grad = _native_distill(
            code, student, teacher, action_mask, weight, temperature, student_temperature, beta,
            reduction, student.dtype is not torch.float16, None, function,
        )  # fmt: skip
        ctx.save_for_backward(student, teacher, action_mask, weight, grad)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradient; differentiates plain torch operations for higher derivatives."""
        student, teacher, action_mask, weight, grad = ctx.saved_tensors
        options = ctx.options
        create_graph = _is_grad_enabled()
        if create_graph or (grad is None and not _is_plain(grad_output)):
            with torch.enable_grad():
                loss = reference_of(student, teacher, action_mask, weight, options)
            (grad,) = torch.autograd.grad(loss, student, grad_output, create_graph=create_graph)
        elif grad is None:
            code, temperature, student_temperature, beta, reduction, function = options
            rows = grad_output.expand(student.shape[0])
            _, grad = _native_distill(
                code, student, teacher, action_mask, rows if weight is None else rows * weight,
                temperature, student_temperature, beta, reduction, True, None, function,
            )  # fmt: skip
        else:
            grad = _scaled(grad, grad_output)
        return grad, None, None, None, None


def _scaled(grad: Tensor, grad_output: Tensor) -> Tensor:
    if grad_output.dim() == 1:
        return (grad * grad_output.unsqueeze(1)).to(grad.dtype)
    if grad_output.is_cuda or not _is_plain(grad_output) or grad_output.item() != 1.0:
        return grad * grad_output
    return grad


def _is_plain(grad_output: Tensor) -> bool:
    """Whether its values are all of it: no batch of vmap's (`is_grads_batched`), no tangent."""
    return forward_ad._current_level < 0 and _has_storage(grad_output)


def topk_reference_of(
    student: Tensor,
    values: Tensor,
    indices: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    options: TopkOptions,
) -> Tensor:
    """`distill_kl_topk` in plain torch operations."""
    temperature, student_temperature, tail, reduction = options
    return topk_reference(
        student, values, indices, temperature=temperature, student_temperature=student_temperature,
        tail=tail, action_mask=action_mask, weight=weight, reduction=reduction,
    )  # fmt: skip


class Topk(torch.autograd.Function):
    """As `Distill`, for `distill_kl_topk`."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        values: Tensor,
        indices: Tensor,
        action_mask: Tensor | None,
        weight: Tensor | None,
        options: TopkOptions,
    ) -> Tensor:
        """Computes the loss and, unless it is float16, the gradient."""
        with_grad = student.dtype is not torch.float16
        loss: Tensor
        loss, grad = _native_topk(
            student, values, indices, action_mask, weight, *options, with_grad
        )
        ctx.save_for_backward(student, values, indices, action_mask, weight, grad)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """As `Distill.backward`."""
        student, values, indices, action_mask, weight, grad = ctx.saved_tensors
        options: TopkOptions = ctx.options
        create_graph = _is_grad_enabled()
        if create_graph or (grad is None and not _is_plain(grad_output)):
            with torch.enable_grad():
                loss = topk_reference_of(student, values, indices, action_mask, weight, options)
            (grad,) = torch.autograd.grad(loss, student, grad_output, create_graph=create_graph)
        elif grad is None:
            rows = grad_output.expand(student.shape[0])
            rows = rows if weight is None else rows * weight
            _, grad = _native_topk(student, values, indices, action_mask, rows, *options, True)
        else:
            grad = _scaled(grad, grad_output)
        return grad, None, None, None, None, None


class Td(torch.autograd.Function):
    """As `Distill`, for `td_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        action: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: tuple[int, str],
    ) -> tuple[Tensor, Tensor]:
        """Computes loss, gradient and |td|."""
        code, reduction = options
        loss, td_abs, grad = _native_td(code, q, action, target, weight, reduction, True)
        ctx.save_for_backward(q, action, target, weight, grad)
        ctx.options = options
        ctx.mark_non_differentiable(td_abs)
        return loss, td_abs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradient, as `Distill.backward`."""
        q, action, target, weight, grad = ctx.saved_tensors
        if _is_grad_enabled():
            code, reduction = ctx.options
            kind = TD_KINDS[code]
            loss, _ = td_reference(q, action, target, weight=weight, kind=kind, reduction=reduction)
            (grad,) = torch.autograd.grad(loss, q, grad_output, create_graph=True)
        else:
            grad = _scaled(grad, grad_output)
        return grad, None, None, None, None


# Function.apply in Python only adds support for functorch transforms, which never get here, and
# costs a microsecond of the few that a small batch takes.
distill_apply: Callable[..., Tensor] = super(torch.autograd.Function, Distill).apply
topk_apply: Callable[..., Tensor] = super(torch.autograd.Function, Topk).apply
td_apply: Callable[..., tuple[Tensor, Tensor]] = super(torch.autograd.Function, Td).apply
